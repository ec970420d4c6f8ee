"""From the recorded attempt to its agents: one Ray actor per rank, and none of them for longer than that.

An attempt is recorded before anything is launched for it. Everything here can be repeated: launching what was
launched, ending what has ended. So a controller that dies in the middle is replaced by one that goes on.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from orchestrator.agent.job import AgentJob, RestoreFrom
from orchestrator.clock import Clock
from orchestrator.cluster.gateway import Gateway
from orchestrator.control.board import hours_of_run
from orchestrator.control.config import ControllerConfig
from orchestrator.control.fleet import Fleet, FleetWatcher
from orchestrator.control.live import LiveBoard
from orchestrator.control.outcomes import Outcomes
from orchestrator.control.shares import gpu_share
from orchestrator.domain import gang
from orchestrator.domain.fleet import ActorInfo, NodeInfo
from orchestrator.domain.limits import first_limit, joules_left
from orchestrator.domain.liveness import Facts, Lost, Silent, needs_probe, verdict
from orchestrator.domain.records import AttemptRecord, Member, RunRecord
from orchestrator.domain.states import Phase, Reason
from orchestrator.domain.tariff import Tariff
from orchestrator.errors import ConflictError, NotFoundError, OrchError, UnavailableError
from orchestrator.messages_agent import Outcome
from orchestrator.store.ledger import Ledger
from orchestrator.store.spool import Spool

log = logging.getLogger(__name__)

LAUNCHES = 8
"""Actors that are being launched at a time; a machine that does not answer holds one up for 30 s."""
SWEEP_S = 10.0
"""How often actors of ended attempts are looked for: a controller may have died before it ended them."""
_STARTING = frozenset({Phase.LAUNCHING, Phase.CLAIMING, Phase.RESTORING})
"""Phases in which some rank of a gang may not have been launched. Rank 0 leaves them once all are there."""
_ACTOR = re.compile(r"run-(?P<run>.+)-a(?P<number>\d+)(-r\d+)?")


class Launching:
    """Launches ranks in threads of its own, notices those that are lost, and ends their actors."""

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
        wake: Callable[[], None],
        tariff: Callable[[], Tariff | None] = lambda: None,
    ) -> None:
        self._config = config
        self._tariff = tariff
        self._ledger = ledger
        self._spool = spool
        self._gateway = gateway
        self._watcher = watcher
        self._live = live
        self._outcomes = outcomes
        self._clock = clock
        self._wake = wake
        self._pool = ThreadPoolExecutor(LAUNCHES, thread_name_prefix="launch")
        # Apart: a launch can wait for what a release gives back.
        self._releaser = ThreadPoolExecutor(2, thread_name_prefix="release")
        self._claiming = threading.Lock()
        self._busy: set[str] = set()
        """Actors that are being launched now."""
        self._started: set[str] = set()
        """Actors whose agents are on their nodes: they are waited for, not launched again."""
        self._swept = clock.monotonic()

    def launch(self, run: RunRecord, attempt: AttemptRecord) -> None:
        """Begin to launch every rank of a new attempt."""
        for rank in range(len(gang.members(attempt))):
            self._live.expect(attempt.run_id, attempt.number, rank)
            self._submit(run, attempt, rank)

    def look(self, fleet: Fleet) -> None:
        """Launch what may never have been launched, end lost ranks of gangs, and sweep now and then."""
        with self._ledger.read() as ledger:
            waiting = [a for a in ledger.open_attempts() if a.members or a.phase is Phase.LAUNCHING]
            runs = {a.run_id: ledger.run(a.run_id) for a in waiting}
        for attempt in waiting:
            if attempt.phase in _STARTING:
                self._launch_again(runs[attempt.run_id], attempt, fleet)
            self._end_lost_ranks(attempt, fleet)
        if fleet.connected and self._clock.monotonic() - self._swept > SWEEP_S:
            self._swept = self._clock.monotonic()
            self._pool.submit(self._sweep)

    def release(self, attempt: AttemptRecord) -> None:
        """Let Ray have the resources of an ended attempt back."""
        for rank in range(len(gang.members(attempt))):
            self._started.discard(attempt.rank_name(rank))
            self._releaser.submit(self._kill, attempt.rank_name(rank))
        self._wake()

    def stop(self) -> None:
        """Launch nothing more."""
        self._releaser.shutdown(wait=False, cancel_futures=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---- launching

    def _launch_again(self, run: RunRecord, attempt: AttemptRecord, fleet: Fleet) -> None:
        """Launch what was recorded but perhaps never launched: this process may have died in between.

        A gang that is about to end gets no further ranks.
        """
        for rank, member in enumerate(gang.members(attempt)):
            name = attempt.rank_name(rank)
            if name in self._busy or name in self._started or not self._missing(attempt, rank, member):
                continue
            if attempt.members and (why := self._doomed(run, attempt)):
                self._outcomes.end(run.id, attempt.number, Outcome(reason=why), rank)
                self._pool.submit(self._kill, name)
            elif fleet.alive(member.ray_id):
                self._live.expect(attempt.run_id, attempt.number, rank)
                self._submit(run, attempt, rank)

    def _missing(self, attempt: AttemptRecord, rank: int, member: Member) -> bool:
        """Whether nothing has been heard of a rank, in words or in the ledger."""
        if rank == 0 and attempt.phase is not Phase.LAUNCHING:
            return False
        return member.end is None and not self._live.spoke(attempt.run_id, attempt.number, rank)

    def _doomed(self, run: RunRecord, attempt: AttemptRecord) -> Reason | None:
        if run.stop is not None:
            return run.stop
        return Reason.RANK_LOST if gang.stop_grace(attempt, self._clock.now()) is not None else None

    def _submit(self, run: RunRecord, attempt: AttemptRecord, rank: int) -> None:
        """Launch a rank, unless somebody does or did so."""
        name = attempt.rank_name(rank)
        with self._claiming:
            if name in self._busy or name in self._started:
                return
            self._busy.add(name)
        self._pool.submit(self._launch_now, run, attempt, rank)

    def _launch_now(self, run: RunRecord, attempt: AttemptRecord, rank: int) -> None:
        name, variant, member = attempt.rank_name(rank), attempt.variant, gang.members(attempt)[rank]
        try:
            self._gateway.launch(
                name,
                ray_id=member.ray_id,
                cpus=variant.cpus,
                memory=variant.memory or 0,
                job=self._job(run, attempt, rank),
            )
            self._started.add(name)
        except UnavailableError as error:
            log.warning("%s not launched yet: %s", name, error)
        except ConflictError as error:
            log.warning("%s is waited for: %s", name, error)
            self._started.add(name)
        except OrchError as error:
            outcome = Outcome(reason=Reason.NOT_STARTED, message=str(error))
            self._outcomes.end(attempt.run_id, attempt.number, outcome, rank)
            self._wake()
        except Exception:
            log.exception("launch of %s failed", name)
        finally:
            self._busy.discard(name)

    def _job(self, run: RunRecord, attempt: AttemptRecord, rank: int) -> AgentJob:
        share = gpu_share(self._watcher.fleet, attempt)
        hours = hours_of_run(run, self._tariff())
        grace = self._config.window_grace_s
        limit = first_limit(run, attempt.variant, self._clock.now(), share, hours, grace)
        has_origin = run.restore_run is not None or run.restore_path is not None
        origin = RestoreFrom(run_id=run.restore_run, step=run.restore_step, path=run.restore_path)
        attempt = _with_gpus(attempt)
        ranks, node = gang.members(attempt), self._node(gang.members(attempt)[rank].ray_id)
        return AgentJob(
            run_id=run.id,
            attempt=attempt.number,
            spec=run.spec,
            variant=attempt.variant,
            node=ranks[rank].node,
            controller_url=self._config.url,
            store_uri=self._config.store_uri,
            mlflow_uri=self._config.mlflow_url,
            mlflow_run_id=self._spool.mlflow_run_id(run.id),
            restore_from=origin if has_origin else None,
            seconds_left=limit.seconds if limit is not None else None,
            limit=limit.reason if limit is not None else Reason.TIME_LIMIT,
            pause_at=run.pause_at,
            joules_left=joules_left(run),
            window_grace_s=grace,
            gpu_ids=gang.visible_gpus(attempt, rank),
            gpu_total=_gpu_total(node, ranks[rank]),
            rank=rank,
            world=len(ranks),
            local_rank=gang.local_rank(attempt, rank),
            address=node.address if node else "",
        )

    def _node(self, ray_id: str) -> NodeInfo | None:
        return next((node for node in self._watcher.fleet.nodes if node.ray_id == ray_id), None)

    # ---- the end

    def _end_lost_ranks(self, attempt: AttemptRecord, fleet: Fleet) -> None:
        """Ranks from 1 on; the first one is kept in sight as attempts are that have no other.

        The others cannot go on without a rank, so that one on a machine that Ray has given up counts as lost.
        """
        for rank, member in enumerate(attempt.members, 1):
            if member.end is not None:
                continue
            silence = self._live.silence(attempt.run_id, attempt.number, rank)
            facts = Facts(silence, fleet.alive(member.ray_id))
            phase = attempt.phase if self._live.spoke(attempt.run_id, attempt.number, rank) else None
            alone = replace(attempt, ray_id=member.ray_id, node=member.node, phase=phase or Phase.LAUNCHING)
            name = attempt.rank_name(rank)
            if needs_probe(facts) and fleet.connected:
                facts = replace(facts, actor=self._probe(name))
            found = verdict(alone, facts)
            if isinstance(found, Silent) and facts.node_alive is False:
                found = Lost(Reason.NODE_LOST, f"{member.node} was lost")
            if isinstance(found, Lost):
                outcome = Outcome(reason=found.reason, message=found.message)
                self._outcomes.end(attempt.run_id, attempt.number, outcome, rank)

    def _probe(self, name: str) -> ActorInfo | None:
        try:
            return self._gateway.probe(name)
        except OrchError as error:
            log.info("%s could not be asked about: %s", name, error)
            return None

    def _kill(self, name: str) -> None:
        try:
            self._gateway.kill(name)
        except OrchError as error:
            log.info("actor %s not killed: %s", name, error)
        self._wake()

    def _sweep(self) -> None:
        """End actors of attempts that have ended. What this ledger does not know is somebody else's."""
        try:
            names = self._gateway.actors()
        except OrchError as error:
            log.info("actors could not be listed: %s", error)
            return
        for name in names:
            if name not in self._busy and self._has_ended(name):
                log.warning("actor %s outlived its attempt", name)
                self._kill(name)

    def _has_ended(self, name: str) -> bool:
        found = _ACTOR.fullmatch(name)
        if found is None:
            return False
        try:
            with self._ledger.read() as ledger:
                return ledger.attempt(found["run"], int(found["number"])).ended
        except NotFoundError:
            return False


def _with_gpus(attempt: AttemptRecord) -> AttemptRecord:
    """The attempt with the next GPUs of each node, from the first, where nobody has chosen any."""
    count = attempt.variant.gpus
    if not count:
        return attempt
    own = [_range(gang.local_rank(attempt, rank), count) for rank in range(1 + len(attempt.members))]
    ranks = [replace(m, gpu_ids=m.gpu_ids or own[rank]) for rank, m in enumerate(attempt.members, 1)]
    return replace(attempt, gpu_ids=attempt.gpu_ids or own[0], members=tuple(ranks))


def _range(place: int, count: int) -> tuple[int, ...]:
    return tuple(range(place * count, (place + 1) * count))


def _gpu_total(node: NodeInfo | None, member: Member) -> int | None:
    if node is None or len(member.gpu_ids) != 1:
        return None
    return next((gpu.memory for gpu in node.report.gpus if gpu.index == member.gpu_ids[0]), None)
