"""Observe, decide, act, record: the loop that starts attempts and notices lost ones."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from orchestrator.agent.job import AgentJob, RestoreFrom
from orchestrator.clock import Clock
from orchestrator.cluster.gateway import Gateway
from orchestrator.control.config import ControllerConfig
from orchestrator.control.fleet import Fleet, FleetWatcher
from orchestrator.control.live import LiveBoard
from orchestrator.control.outcomes import Outcomes
from orchestrator.domain.fleet import ActorInfo
from orchestrator.domain.liveness import needs_probe, verdict
from orchestrator.domain.planner import VariantVerdict, loads, plan
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.errors import OrchError, UnavailableError
from orchestrator.messages import Outcome
from orchestrator.store.ledger import OPEN_STATES, Ledger, Transaction
from orchestrator.store.spool import Spool

log = logging.getLogger(__name__)

TICK_S = 1.0
LAUNCHES = 8
"""Attempts that are being launched at a time; a machine that does not answer holds one up for 30 s."""
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
        clock: Clock,
    ) -> None:
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
        self._launcher = ThreadPoolExecutor(LAUNCHES, thread_name_prefix="launch")
        # Apart: a launch can wait for what a release gives back.
        self._releaser = ThreadPoolExecutor(2, thread_name_prefix="release")
        self._launching: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self.draining = False
        """True once machines are being taken down: nothing new starts."""

    def start(self) -> None:
        """Begin to decide."""
        self._thread.start()

    def stop(self) -> None:
        """End deciding; running attempts go on."""
        self._stop.set()
        self._wake.set()
        self._thread.join(10)
        self._launcher.shutdown(wait=False, cancel_futures=True)
        self._releaser.shutdown(wait=False, cancel_futures=True)

    def wake(self) -> None:
        """Something changed: look now."""
        self._wake.set()

    def release(self, attempt: AttemptRecord) -> None:
        """Let Ray have the resources of an ended attempt back."""
        self._releaser.submit(self._kill_actor, attempt.actor_name)
        self.wake()

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
        self._end_lost(fleet)
        self._launch_again()
        if not self.draining and fleet.connected:
            self._start_waiting(fleet)

    # ---- attempts that are there

    def _end_lost(self, fleet: Fleet) -> None:
        with self._ledger.read() as ledger:
            open_attempts = ledger.open_attempts()
        for attempt in open_attempts:
            silence = self._live.silence(attempt.run_id, attempt.number)
            actor = self._probe(attempt) if needs_probe(silence) and fleet.connected else None
            lost = verdict(attempt, silence, fleet.alive(attempt.ray_id), actor)
            if lost:
                outcome = Outcome(reason=lost.reason, message=lost.message)
                self._outcomes.end(attempt.run_id, attempt.number, outcome)

    def _probe(self, attempt: AttemptRecord) -> ActorInfo | None:
        try:
            return self._gateway.probe(attempt.actor_name)
        except OrchError as error:
            log.info("%s could not be asked about: %s", attempt.actor_name, error)
            return None

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
        now = self._clock.now()
        started: list[tuple[RunRecord, AttemptRecord]] = []
        with self._ledger.begin() as ledger:
            queue = ledger.runs(states=[RunState.QUEUED])
            if not queue:
                return
            names = {run.id: run.spec.name for run in ledger.runs(states=OPEN_STATES)}
            machines = loads(fleet.nodes, ledger.open_attempts(), names)
            runs = {run.id: run for run in queue}
            for decision in plan(queue, machines, now):
                run = runs[decision.run_id]
                if decision.chosen:
                    started.append(self._record_start(ledger, run, decision.chosen))
                elif run.message != decision.why:
                    ledger.save_run(replace(run, message=decision.why))
        for run, attempt in started:
            self._live.expect(run.id, attempt.number)
            self._launch(run, attempt)

    def _record_start(
        self, ledger: Transaction, run: RunRecord, chosen: VariantVerdict
    ) -> tuple[RunRecord, AttemptRecord]:
        """Record the attempt before it is launched, so that a crash in between loses nothing."""
        assert chosen.node is not None
        now = self._clock.now()
        run = replace(run, state=RunState.STARTING, attempt=run.attempt + 1, message="", reason=None)
        attempt = AttemptRecord(
            run_id=run.id,
            number=run.attempt,
            ray_id=chosen.node.ray_id,
            node=chosen.node.name,
            variant_index=chosen.index,
            variant=chosen.variant,
            phase=Phase.LAUNCHING,
            created_at=now,
        )
        ledger.save_run(run)
        ledger.add_attempt(attempt)
        ledger.add_event(run.id, now, "placed", f"attempt {run.attempt} goes to {chosen.node.name}")
        return run, attempt

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
        limit = run.spec.max_duration
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
            seconds_left=None if limit is None else max(0.0, limit - run.seconds_used),
        )

    def _kill_actor(self, name: str) -> None:
        try:
            self._gateway.kill(name)
        except OrchError as error:
            log.info("actor %s not killed: %s", name, error)
        self.wake()
