"""The use cases: what a client can ask of the controller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from orchestrator.clock import Clock
from orchestrator.contract import DATASET_FILE
from orchestrator.control.energy import EnergyBook
from orchestrator.control.estimates import Estimates
from orchestrator.control.fleet import FleetWatcher
from orchestrator.control.ids import key_taken, new_id
from orchestrator.control.live import LiveBoard
from orchestrator.control.logs import RunFiles
from orchestrator.control.origin import Origin, resolve_origin
from orchestrator.control.pages import pages
from orchestrator.control.scheduling import Scheduling
from orchestrator.control.tracking import Tracking
from orchestrator.control.views import Views, events
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import RunState
from orchestrator.domain.transitions import cancel, move, shut_down
from orchestrator.errors import ConflictError, NotFoundError
from orchestrator.messages import (
    LimitRequest,
    LimitsView,
    LogPage,
    PlanLine,
    PlanView,
    PointView,
    RunDetail,
    RunView,
    SubmitRequest,
    Submitted,
    WhyNode,
    WhyVariant,
    WhyView,
)
from orchestrator.spec.identity import spec_hash
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import ObjectStore
from orchestrator.store.spool import Spool
from orchestrator.tracking.links import charts_link, compare_link, these_runs


class Service:
    """Everything that the API offers to clients."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        store: ObjectStore,
        files: RunFiles,
        live: LiveBoard,
        watcher: FleetWatcher,
        scheduling: Scheduling,
        estimates: Estimates,
        tracking: Tracking,
        energy: EnergyBook,
        clock: Clock,
        mlflow_url: str,
        wake: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._store = store
        self._files = files
        self._watcher = watcher
        self._scheduling = scheduling
        self._tracking = tracking
        self._clock = clock
        self._mlflow_url = mlflow_url
        self._wake = wake
        self._views = Views(ledger, spool, live, scheduling, estimates, watcher, energy)

    # ---- runs

    def submit(self, request: SubmitRequest) -> Submitted:
        """Accept a spec. On return the run is on disk.

        The same key with the same spec is the same run; ConflictError where the key was used for another.
        """
        digest = spec_hash(request.spec)
        with self._ledger.read() as ledger:
            known = ledger.run_by_key(request.key)
        if known is None:
            origin = resolve_origin(request.spec.resume_from, self._ledger, self._store)
            with self._ledger.begin() as ledger:
                known = ledger.run_by_key(request.key)
                if known is None:
                    run = ledger.add_run(self._new_run(request, digest, origin))
                    ledger.add_event(run.id, run.created_at, "submitted", f"accepted as {run.id}")
        if known is not None:
            if known.spec_hash != digest:
                raise key_taken(request.key, f"run {known.id}")
            self._tracking.run_created(known)
            return Submitted(run_id=known.id, name=known.spec.name, created=False)
        self._tracking.run_created(run)
        self._wake()
        return Submitted(run_id=run.id, name=run.spec.name, created=True)

    def _new_run(self, request: SubmitRequest, digest: str, origin: Origin) -> RunRecord:
        return RunRecord(
            id=new_id(),
            seq=0,
            key=request.key,
            spec=request.spec,
            spec_hash=digest,
            source=request.source,
            user=request.user,
            state=RunState.QUEUED,
            created_at=self._clock.now(),
            restore_run=origin.run_id,
            restore_step=origin.step,
            restore_path=origin.path,
        )

    def runs(self, states: list[RunState], experiment: str | None, limit: int) -> list[RunView]:
        """Runs, newest first."""
        with self._ledger.read() as ledger:
            found = ledger.runs(states=states, experiment=experiment, limit=limit)
        return self._views.runs(found)

    def detail(self, ref: str) -> RunDetail:
        """Everything about one run."""
        with self._ledger.read() as ledger:
            run = ledger.find(ref)
            attempts = ledger.attempts(run.id)
            history = ledger.events(run.id)
        latest = self._spool.latest(run.id)
        return RunDetail(
            run=self._views.run(run),
            spec=run.spec,
            attempts=self._views.attempts(run, attempts),
            events=events(history),
            metrics={key: value for key, (_, value) in latest.items()},
            links=pages(self._spool, self._mlflow_url, run.id),
        )

    def compare_links(self, refs: list[str]) -> dict[str, str]:
        """MLflow's pages that show these runs side by side; empty until MLflow knows them all."""
        with self._ledger.read() as ledger:
            ids = [ledger.find(ref).id for ref in refs]
        known = [found for run_id in ids if (found := self._spool.mlflow_run(run_id))]
        if len(known) < len(refs) or not known or not self._mlflow_url:
            return {}
        experiments = list(dict.fromkeys(experiment for experiment, _ in known))
        mlflow_runs = [mlflow_run for _, mlflow_run in known]
        return {
            "compare": compare_link(self._mlflow_url, experiments, mlflow_runs),
            "charts": charts_link(self._mlflow_url, experiments[0], these_runs(mlflow_runs)),
        }

    def cancel(self, ref: str) -> RunView:
        """End a run for good. Durable once it returns, also while an attempt is being started."""
        with self._ledger.begin() as ledger:
            before = ledger.find(ref)
            run = cancel(before, self._clock.now())
            if run != before:
                ledger.save_run(run)
                ledger.add_event(run.id, self._clock.now(), "cancel", "its user asked to cancel it")
        if run.state.final and run != before:
            self._tracking.attempt_ended(run)
        self._wake()
        return self._views.run(run)

    def move(self, ref: str, pool: str) -> RunView:
        """Save the run and go on in another pool; ConflictError where that cannot be."""
        with self._ledger.begin() as ledger:
            run = ledger.find(ref)
            if run.state.final:
                raise ConflictError(
                    f"run {run.id} has ended ({run.state.value})",
                    remedy="`orch resume` begins a new run from its checkpoint",
                )
            allowed = [variant.pool for variant in run.spec.placement]
            if pool not in allowed:
                raise ConflictError(
                    f"the spec of {run.spec.name} has no placement in pool {pool}",
                    remedy=f"it may run in: {', '.join(allowed)}",
                )
            current = ledger.attempts(run.id)[-1:] if run.state != RunState.QUEUED else []
            if current and current[0].variant.pool == pool and run.stop is None:
                raise ConflictError(f"run {run.id} is in pool {pool} already")
            run = move(run, pool)
            ledger.save_run(run)
            ledger.add_event(run.id, self._clock.now(), "move", f"its user asked to move it to {pool}")
        self._wake()
        return self._views.run(run)

    def shut_down(self) -> int:
        """Order every attempt to save and stop; the number of attempts that have not ended yet."""
        with self._ledger.begin() as ledger:
            attempts = ledger.open_attempts()
            for attempt in attempts:
                run = ledger.run(attempt.run_id)
                if run.stop is None:
                    ledger.save_run(shut_down(run))
        return len(attempts)

    # ---- what belongs to a run

    def points(self, ref: str, keys: list[str], after_step: int | None, limit: int) -> list[PointView]:
        """Measurements of a run by step."""
        with self._ledger.read() as ledger:
            run = ledger.find(ref)
        return self._spool.points(run.id, keys=keys or None, after_step=after_step, limit=limit)

    def log_page(self, ref: str, attempt: int | None, offset: int, rank: int = 0) -> LogPage:
        """Output of an attempt (the newest when None) from this byte on; of one rank of it."""
        with self._ledger.read() as ledger:
            run = ledger.find(ref)
            attempts = {a.number: a for a in ledger.attempts(run.id)}
        number = run.attempt if attempt is None else attempt
        if attempt is not None and attempt not in attempts:
            there = f"it has attempts 1 to {run.attempt}" if attempts else "it has none yet"
            raise NotFoundError(f"run {run.id} has no attempt {attempt}", remedy=there)
        data = self._files.read(run.id, number, offset, rank=rank) if attempts else b""
        ended = run.state.final if not attempts else attempts[number].ended
        return LogPage(
            attempt=number,
            offset=offset,
            data=data,
            next_offset=offset + len(data),
            ended=ended,
            last_attempt=run.attempt,
        )

    def save_artifact(self, run_id: str, number: int, path: str, data: bytes) -> None:
        """Keep a file that the program of the newest attempt has left."""
        with self._ledger.read() as ledger:
            run = ledger.run(run_id)
        if number != run.attempt:
            raise ConflictError(f"attempt {number} of run {run_id} is not the newest")
        file = self._files.save_artifact(run_id, path, data)
        self._tracking.artifact(run, path, file)
        if path == DATASET_FILE:
            self._tracking.dataset(run, data)

    # ---- machines

    def plan(self, request: SubmitRequest) -> PlanView:
        """What would happen to a spec now, by the very function that schedules."""
        origin = resolve_origin(request.spec.resume_from, self._ledger, self._store)
        candidate = replace(self._new_run(request, "", origin), seq=2**62)
        verdict = self._scheduling.judge(candidate, self._watcher.fleet)
        placement = request.spec.placement
        lines = [
            PlanLine(variant=placement[one.index], node=one.node, why=verdict.first or one.why)
            for one in verdict.variants
        ]
        ahead = self._scheduling.ahead(request.spec.priority)
        return PlanView(lines=lines, resolved=request.spec, ahead=ahead, restore=str(origin) or None)

    # ---- the queue

    def why(self, ref: str) -> WhyView:
        """What stands in the way of a run; of one that does not wait, what it does instead."""
        with self._ledger.read() as ledger:
            run = ledger.find(ref)
        fleet = self._watcher.fleet
        verdict = self._scheduling.why(run.id, fleet)
        if verdict is None:
            return WhyView(run=self._views.run(run))
        first = verdict.first if fleet.connected else "Ray does not answer; nothing starts until it does"
        return WhyView(
            run=self._views.run(run),
            first=first,
            variants=[
                WhyVariant(
                    variant=run.spec.placement[one.index],
                    node=one.node,
                    why=one.why,
                    nodes=[WhyNode(**asdict(at)) for at in one.nodes],
                )
                for one in verdict.variants
            ],
        )

    def queue(self, limit: int) -> list[RunView]:
        """The first runs that wait, by level and order of acceptance."""
        ids = self._scheduling.first_in_line(limit)
        with self._ledger.read() as ledger:
            found = [ledger.run(run_id) for run_id in ids]
        return self._views.runs(found)

    def hold(self, ref: str, *, held: bool) -> RunView:
        """Hold a run back, or release it. One that executes goes on; it is held when it next waits."""
        word = "hold" if held else "release"
        return self._change(ref, word, f"its user asked to {word} it", lambda run: replace(run, held=held))

    def top(self, ref: str) -> RunView:
        """Let a run go before all others of its priority."""
        with self._ledger.read() as ledger:
            front = ledger.highest_front() + 1
        return self._change(ref, "top", "goes first", lambda run: replace(run, front=front))

    def _change(self, ref: str, kind: str, text: str, change: Callable[[RunRecord], RunRecord]) -> RunView:
        with self._ledger.begin() as ledger:
            run = ledger.find(ref)
            if run.state.final:
                raise ConflictError(f"run {run.id} has ended ({run.state.value})")
            changed = change(run)
            if changed != run:
                ledger.save_run(changed)
                ledger.add_event(run.id, self._clock.now(), kind, text)
        self._wake()
        return self._views.run(changed)

    def limits(self) -> LimitsView:
        """Most attempts at a time."""
        limits = self._scheduling.limits()
        return LimitsView(pools=dict(limits.pools), experiments=dict(limits.experiments))

    def set_limit(self, request: LimitRequest) -> LimitsView:
        """Set a limit, or take it away."""
        self._scheduling.set_limit(request.kind, request.name, request.most)
        self._wake()
        return self.limits()
