"""Observe, decide, act, record: the loop that starts attempts and notices lost ones."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from orchestrator.agent.job import AgentJob, RestoreFrom
from orchestrator.clock import Clock
from orchestrator.cluster.gateway import Gateway
from orchestrator.control.config import ControllerConfig
from orchestrator.control.deadlines import Deadlines
from orchestrator.control.emptying import order_away
from orchestrator.control.fleet import Fleet, FleetWatcher
from orchestrator.control.live import LiveBoard
from orchestrator.control.outcomes import Outcomes
from orchestrator.control.scheduling import Scheduling
from orchestrator.control.shares import gpu_share
from orchestrator.control.sight import Sight
from orchestrator.domain.limits import first_limit
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import Phase, Reason
from orchestrator.errors import OrchError, UnavailableError
from orchestrator.messages import Outcome
from orchestrator.store.ledger import Ledger
from orchestrator.store.spool import Spool

log = logging.getLogger(__name__)

TICK_S = 1.0
STALL_S = 20.0
"""A tick that comes this late means that this machine was asleep: silences of agents prove nothing."""


class Loop:
    """Runs in a thread of its own; :meth:`wake` makes it look at once."""

    def __init__(
        self,
        config: ControllerConfig,
        ledger: Ledger,
        spool: Spool,
        gateway: Gateway,
        watcher: FleetWatcher,
        live: LiveBoard,
        outcomes: Outcomes,
        scheduling: Scheduling,
        sight: Sight,
        deadlines: Deadlines,
        clock: Clock,
    ) -> None:
        self._sight = sight
        self._deadlines = deadlines
        self._scheduling = scheduling
        self._config = config
        self._ledger = ledger
        self._spool = spool
        self._gateway = gateway
        self._watcher = watcher
        self._live = live
        self._outcomes = outcomes
        self._clock = clock
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._launcher = ThreadPoolExecutor(4, thread_name_prefix="launch")
        self._launching: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)

    def start(self) -> None:
        """Begin to decide."""
        self._thread.start()

    def stop(self) -> None:
        """End deciding; running attempts go on."""
        self._stop.set()
        self._wake.set()
        self._thread.join(10)
        self._launcher.shutdown(wait=False, cancel_futures=True)

    def wake(self) -> None:
        """Something changed: look now."""
        self._wake.set()

    def release(self, attempt: AttemptRecord) -> None:
        """Let Ray have the resources of an ended attempt back."""
        self._launcher.submit(self._kill_actor, attempt.actor_name)

    def _run(self) -> None:
        last = self._clock.boottime()
        while not self._stop.is_set():
            if self._clock.boottime() - last > STALL_S:
                log.warning("this machine was away for %.0f s", self._clock.boottime() - last)
                self._live.pardon()
            last = self._clock.boottime()
            try:
                self.tick()
            except Exception:
                log.exception("a tick of the loop failed; the next one tries again")
            self._wake.wait(TICK_S)
            self._wake.clear()

    def tick(self) -> None:
        """One round. Safe to repeat at any time."""
        fleet = self._watcher.fleet
        self._sight.look(fleet)
        self._deadlines.expire()
        order_away(self._ledger, fleet, self._clock)
        self._launch_again()
        if not self._scheduling.draining and fleet.connected:
            self._start_waiting(fleet)

    # ---- attempts that are there

    def _launch_again(self) -> None:
        """Launch what was recorded but perhaps never launched: this process may have died in between."""
        with self._ledger.read() as ledger:
            waiting = [a for a in ledger.open_attempts() if a.phase == Phase.LAUNCHING]
            runs = {a.run_id: ledger.run(a.run_id) for a in waiting}
        for attempt in waiting:
            if attempt.actor_name not in self._launching and self._watcher.fleet.alive(attempt.ray_id):
                self._launch(runs[attempt.run_id], attempt)

    # ---- runs that wait

    def _start_waiting(self, fleet: Fleet) -> None:
        started, more = self._scheduling.round(fleet)
        for run, attempt in started:
            self._live.expect(run.id, attempt.number)
            self._launch(run, attempt)
        if more:
            self.wake()

    # ---- launching

    def _launch(self, run: RunRecord, attempt: AttemptRecord) -> None:
        self._launching.add(attempt.actor_name)
        self._launcher.submit(self._launch_now, run, attempt)

    def _launch_now(self, run: RunRecord, attempt: AttemptRecord) -> None:
        variant = attempt.variant
        try:
            self._gateway.launch(
                attempt.actor_name,
                ray_id=attempt.ray_id,
                cpus=variant.cpus,
                gpus=variant.gpus,
                memory=variant.memory or 0,
                job=self._job(run, attempt),
            )
        except UnavailableError as error:
            log.warning("%s not launched yet: %s", attempt.actor_name, error)
        except OrchError as error:
            outcome = Outcome(reason=Reason.NOT_STARTED, message=str(error))
            self._outcomes.end(attempt.run_id, attempt.number, outcome)
            self.wake()
        except Exception:
            log.exception("launch of %s failed", attempt.actor_name)
        finally:
            self._launching.discard(attempt.actor_name)

    def _job(self, run: RunRecord, attempt: AttemptRecord) -> AgentJob:
        share = gpu_share(self._watcher.fleet, attempt)
        limit = first_limit(run, attempt.variant, self._clock.now(), share)
        has_origin = run.restore_run is not None or run.restore_path is not None
        origin = RestoreFrom(run_id=run.restore_run, step=run.restore_step, path=run.restore_path)
        return AgentJob(
            run_id=run.id,
            attempt=attempt.number,
            spec=run.spec,
            variant=attempt.variant,
            node=attempt.node,
            controller_url=self._config.url,
            store_uri=self._config.store_uri,
            mlflow_uri=self._config.mlflow_url,
            mlflow_run_id=self._spool.mlflow_run_id(run.id),
            restore_from=origin if has_origin else None,
            seconds_left=limit.seconds if limit is not None else None,
            limit=limit.reason if limit is not None else Reason.TIME_LIMIT,
        )

    def _kill_actor(self, name: str) -> None:
        try:
            self._gateway.kill(name)
        except OrchError as error:
            log.info("actor %s not killed: %s", name, error)
        self.wake()
