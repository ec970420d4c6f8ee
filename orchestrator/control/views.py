"""What clients see: views put together from the ledger, the spool and the signs of life."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from orchestrator.control.energy import EnergyBook
from orchestrator.control.estimates import Estimates
from orchestrator.control.fleet import Fleet, FleetWatcher
from orchestrator.control.live import LiveBoard
from orchestrator.control.scheduling import Scheduling
from orchestrator.domain import gang
from orchestrator.domain.energy import KWH_J
from orchestrator.domain.records import AttemptRecord, EventRecord, RunRecord
from orchestrator.domain.states import CONSEQUENCES, RunState
from orchestrator.messages import (
    AttemptView,
    CheckpointView,
    EventView,
    GpuView,
    NodeView,
    ParentView,
    RunView,
)
from orchestrator.store.ledger import Ledger
from orchestrator.store.records import CheckpointRecord
from orchestrator.store.spool import Spool

_KEYS = ("train/loss", "val/loss", "perf/tokens_per_s", "perf/step_ms")


class Views:
    """Builds what is shown."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        live: LiveBoard,
        scheduling: Scheduling,
        estimates: Estimates,
        watcher: FleetWatcher,
        energy: EnergyBook,
    ) -> None:
        self._energy = energy
        self._estimates = estimates
        self._scheduling = scheduling
        self._watcher = watcher
        self._ledger = ledger
        self._spool = spool
        self._live = live

    def runs(self, runs: Sequence[RunRecord]) -> list[RunView]:
        """Runs as a list shows them, in the given order."""
        ids = [run.id for run in runs]
        with self._ledger.read() as ledger:
            attempts = ledger.last_attempts(ids)
        return self.counted([self._counted(run, attempts.get(run.id)) for run in runs])

    def _counted(
        self, run: RunRecord, attempt: AttemptRecord | None
    ) -> tuple[RunRecord, AttemptRecord | None]:
        return self._energy.counted(run, attempt) if attempt is not None else (run, None)

    def counted(self, runs: Sequence[tuple[RunRecord, AttemptRecord | None]]) -> list[RunView]:
        """The same of runs with their newest attempts, with what was heard of the energy of both."""
        latest = self._spool.latest_many([run.id for run, _ in runs], keys=_KEYS)
        return [self._run(run, attempt, latest.get(run.id, {})) for run, attempt in runs]

    @property
    def currency(self) -> str | None:
        """What costs are in; None without a tariff."""
        return self._energy.currency

    def run(self, run: RunRecord) -> RunView:
        """One run."""
        return self.runs([run])[0]

    def _run(
        self, run: RunRecord, attempt: AttemptRecord | None, latest: dict[str, tuple[int, float]]
    ) -> RunView:
        step = self._step(run, attempt)
        target = run.spec.trainer.max_steps if run.spec.trainer else None
        value = {key: latest[key][1] if key in latest else None for key in _KEYS}
        running = run.state == RunState.RUNNING
        step_ms = value["perf/step_ms"]
        eta = None
        if running and target and step is not None and step_ms:
            eta = max(0, target - step) * step_ms / 1000
        elif not run.state.final:
            eta = self._estimates.remaining(run, attempt, step)
        return RunView(
            id=run.id,
            name=run.spec.name,
            experiment=run.spec.experiment,
            state=run.state,
            reason=run.reason,
            message=self._message(run),
            priority=run.spec.priority,
            pool=attempt.variant.pool if attempt else None,
            node=attempt.node if attempt else None,
            attempt=run.attempt,
            step=step,
            target_steps=target,
            loss=value["train/loss"],
            val_loss=value["val/loss"],
            tokens_per_s=value["perf/tokens_per_s"] if running else None,
            eta_s=eta,
            transfer=self._live.transfer(run.id, attempt.number) if attempt else None,
            energy_kwh=run.joules_used / KWH_J if run.energy_source else None,
            energy_source=run.energy_source,
            cost=run.cost,
            currency=self._energy.currency if run.cost is not None else None,
            created_at=run.created_at,
            started_at=run.started_at,
            ended_at=run.ended_at,
            user=run.user,
        )

    def _message(self, run: RunRecord) -> str:
        if run.state == RunState.QUEUED and not self._scheduling.draining:
            verdict = self._scheduling.why(run.id, self._watcher.fleet)
            if verdict is not None:
                return verdict.why or "it starts in a moment"
        if run.message or run.reason is None:
            return run.message
        return CONSEQUENCES[run.reason].text

    def _step(self, run: RunRecord, attempt: AttemptRecord | None) -> int | None:
        if attempt is None:
            return run.restore_step
        live = self._live.step(run.id, attempt.number)
        known = [step for step in (live, attempt.last_step, attempt.first_step) if step is not None]
        if known:
            return max(known)
        if attempt.number == 1:
            return run.restore_step
        with self._ledger.read() as ledger:
            steps = [a.last_step for a in ledger.attempts(run.id) if a.last_step is not None]
        return steps[-1] if steps else None

    def attempts(self, run: RunRecord, attempts: Sequence[AttemptRecord]) -> list[AttemptView]:
        """A run's attempts with the newest step and the energy of those that execute."""
        return [self._attempt(self._energy.counted(run, attempt)[1]) for attempt in attempts]

    def _attempt(self, a: AttemptRecord) -> AttemptView:
        step = self._live.step(a.run_id, a.number)
        return AttemptView(
            number=a.number,
            phase=a.phase,
            reason=a.reason,
            message=a.message,
            node=gang.where(a),
            pool=a.variant.pool,
            device=a.device_name or a.device,
            first_step=a.first_step,
            last_step=step if step is not None else a.last_step,
            exit_code=a.exit_code,
            created_at=a.created_at,
            started_at=a.started_at,
            ended_at=a.ended_at,
            timings=a.timings,
            energy_kwh=a.joules / KWH_J if a.energy_source else None,
            energy_source=a.energy_source,
            cost=a.cost,
        )

    def nodes(self, fleet: Fleet) -> list[NodeView]:
        """Machines with what runs on them, by name. A lost node is shown until one of its name is back."""
        used = self._scheduling.rooms(fleet)
        views = {}
        for node in sorted(fleet.nodes, key=lambda node: (node.name, node.alive)):
            room = used[node.ray_id]
            views[node.name] = NodeView(
                name=node.name,
                pool=node.pool,
                state="ready" if node.alive and fleet.connected else "lost",
                address=node.address,
                cpus=node.cpus,
                cpus_used=node.cpus - room.cpus,
                gpus=node.gpus,
                gpus_used=sum(gpu.whole or gpu.shared > 0 for gpu in room.gpus),
                memory=node.memory,
                runs=list(dict.fromkeys(grant.name for grant in room.grants)) if node.alive else [],
                gpu_states=[GpuView(**asdict(gpu)) for gpu in node.report.gpus],
                closed=node.closed,
                draining=node.draining,
                drained=node.draining and node.alive and not room.grants,
                excluded=node.excluded,
                away_since=node.away.since if node.away is not None else None,
                busy=node.report.busy,
                yields=node.report.yields,
            )
        return list(views.values())


def events(records: Sequence[EventRecord]) -> list[EventView]:
    """The history of a run."""
    return [EventView(at=record.at, kind=record.kind, text=record.text) for record in records]


def checkpoint(record: CheckpointRecord, run_id: str, uri: str) -> CheckpointView:
    """One committed checkpoint."""
    return CheckpointView(
        run=run_id,
        step=record.step,
        attempt=record.attempt,
        node=record.node,
        device=record.device,
        at=record.at,
        size=record.size,
        metrics=record.metrics,
        uri=uri,
        kept=not record.retired,
        tags=list(record.tags),
        parent=ParentView(run=record.parent.run, step=record.parent.step) if record.parent else None,
        versions=record.versions,
        sent=sum(file.size for file in record.files if file.key is None),
    )
