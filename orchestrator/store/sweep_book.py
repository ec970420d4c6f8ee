"""Sweeps and trials in the ledger: part of a :class:`~orchestrator.store.ledger.Transaction`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, case, func, select
from sqlalchemy.engine import RowMapping

from orchestrator.domain.energy import EnergySource, joined
from orchestrator.domain.states import Phase
from orchestrator.domain.sweeps import SweepRecord, SweepState, TrialRecord, TrialState
from orchestrator.domain.trials import Used, total
from orchestrator.errors import NotFoundError
from orchestrator.spec.sweep import SweepSpec
from orchestrator.store import tables

_OPEN_TRIALS = tuple(state for state in TrialState if not state.final)
_FIXED = ("id", "seq", "key", "name", "source", "user", "schedule_id", "created_at")
_INSTANTS = ("created_at", "ended_at")


class SweepBook:
    """What can be asked of and told to the ledger about sweeps."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # ---- sweeps

    def add(self, sweep: SweepRecord) -> SweepRecord:
        """Record a new sweep and answer it with its sequence number. Its id and key must be new."""
        result = self._connection.execute(tables.sweeps.insert().values(**_sweep_values(sweep)))
        assert result.inserted_primary_key is not None
        return replace(sweep, seq=int(result.inserted_primary_key[0]))

    def save(self, sweep: SweepRecord) -> None:
        """Overwrite what may change of a sweep: its state, and the spec of one that is extended."""
        values = {key: value for key, value in _sweep_values(sweep).items() if key not in _FIXED}
        self._connection.execute(
            tables.sweeps.update().where(tables.sweeps.c.id == sweep.id).values(**values)
        )

    def get(self, sweep_id: str) -> SweepRecord:
        """One sweep by its whole id; NotFoundError."""
        row = self._one(select(tables.sweeps).where(tables.sweeps.c.id == sweep_id))
        if row is None:
            raise NotFoundError(f"no sweep has the id {sweep_id}", remedy="`orch sweep ls --all` lists them")
        return _sweep(row)

    def by_key(self, key: str) -> SweepRecord | None:
        """The sweep that was submitted with this key."""
        row = self._one(select(tables.sweeps).where(tables.sweeps.c.key == key))
        return _sweep(row) if row is not None else None

    def find(self, ref: str) -> SweepRecord:
        """A sweep by id, name (its newest sweep) or unique beginning of an id; NotFoundError."""
        table = tables.sweeps
        exact = self._one(select(table).where(table.c.id == ref))
        named = select(table).where(table.c.name == ref).order_by(table.c.seq.desc()).limit(1)
        found = exact if exact is not None else self._one(named)
        if found is None and ref:
            begun = self._all(select(table).where(table.c.id.startswith(ref, autoescape=True)).limit(2))
            found = begun[0] if len(begun) == 1 else None
        if found is None:
            raise NotFoundError(f"no sweep is called {ref}", remedy="`orch sweep ls --all` lists every sweep")
        return _sweep(found)

    def all(self, *, states: Sequence[SweepState] = (), limit: int | None = None) -> list[SweepRecord]:
        """Sweeps, newest first."""
        query = select(tables.sweeps).order_by(tables.sweeps.c.seq.desc())
        if states:
            query = query.where(tables.sweeps.c.state.in_(states))
        if limit is not None:
            query = query.limit(limit)
        return [_sweep(row) for row in self._all(query)]

    def unsettled(self) -> list[SweepRecord]:
        """Sweeps that have not ended, or have trials that have not."""
        table, trials = tables.sweeps, tables.trials
        final = [state for state in SweepState if state.final]
        open_trials = select(trials.c.sweep_id).where(trials.c.state.in_(_OPEN_TRIALS))
        query = select(table).where(table.c.state.not_in(final) | table.c.id.in_(open_trials))
        return [_sweep(row) for row in self._all(query.order_by(table.c.seq))]

    def open_run_ids(self, sweep_id: str) -> list[str]:
        """Runs of a sweep's trials that have not ended."""
        table = tables.trials
        where = (table.c.sweep_id == sweep_id) & table.c.state.in_(_OPEN_TRIALS)
        return [row["run_id"] for row in self._all(select(table.c.run_id).where(where))]

    def used(self, sweep_id: str, now: datetime) -> Used:
        """What all trials of a sweep have used until now."""
        runs, trials = tables.runs, tables.trials
        ended = self._one(
            select(
                func.total(runs.c.seconds_used).label("seconds"),
                func.total(runs.c.gpu_seconds_used).label("gpu_seconds"),
                func.sum(case((runs.c.energy_source.is_not(None), runs.c.joules_used))).label("joules"),
                func.sum(runs.c.cost).label("cost"),
                func.group_concat(runs.c.energy_source.distinct()).label("source"),
            )
            .join(trials, trials.c.run_id == runs.c.id)
            .where(trials.c.sweep_id == sweep_id)
        )
        assert ended is not None
        executing = [used for _, used in self._executing(sweep_id, now)]
        source = joined(*map(EnergySource, ended["source"].split(",") if ended["source"] else ()))
        return total([Used(**{**ended, "source": source}), *executing])

    def used_by_run(self, sweep_id: str, now: datetime) -> dict[str, Used]:
        """What each of a sweep's runs has used until now.

        GPU time of an attempt that executes counts whole GPUs; once it has ended, its share.
        """
        runs, trials = tables.runs, tables.trials
        query = select(
            runs.c.id,
            runs.c.seconds_used,
            runs.c.gpu_seconds_used,
            runs.c.joules_used,
            runs.c.energy_source,
            runs.c.cost,
        ).join(trials, trials.c.run_id == runs.c.id)
        found = {
            row["id"]: Used(
                row["seconds_used"],
                row["gpu_seconds_used"],
                row["joules_used"] if row["energy_source"] else None,
                row["cost"],
                EnergySource(row["energy_source"]) if row["energy_source"] else None,
            )
            for row in self._all(query.where(trials.c.sweep_id == sweep_id))
        }
        for run_id, used in self._executing(sweep_id, now):
            found[run_id] = total([found[run_id], used])
        return found

    def _executing(self, sweep_id: str, now: datetime) -> Iterator[tuple[str, Used]]:
        """What attempts that have not ended have used, by run; their energy is their run's already."""
        trials, attempts = tables.trials, tables.attempts
        query = (
            select(attempts.c.run_id, attempts.c.started_at, attempts.c.variant)
            .join(trials, trials.c.run_id == attempts.c.run_id)
            .where((trials.c.sweep_id == sweep_id) & (attempts.c.phase != Phase.ENDED))
        )
        for row in self._all(query):
            began, variant = _instant(row["started_at"]), row["variant"]
            spent = max(0.0, (now - began).total_seconds()) if began else 0.0
            gpus = variant.get("gpus", 0) * variant.get("ranks", 1)
            yield row["run_id"], Used(spent, spent * gpus)

    def points(self, sweep_id: str) -> int:
        """How many points have been begun."""
        table = tables.trials
        row = self._one(select(func.max(table.c.point).label("last")).where(table.c.sweep_id == sweep_id))
        return 0 if row is None or row["last"] is None else int(row["last"]) + 1

    def best(self, sweep: SweepRecord) -> tuple[TrialRecord, float] | None:
        """The first trial of the best point, and the point's mean, as
        :func:`orchestrator.domain.trials.standings` ranks them; without reading every trial."""
        table, spec = tables.trials, sweep.spec
        mean = func.avg(table.c.value)
        where = (table.c.sweep_id == sweep.id) & (table.c.state == TrialState.COMPLETE)
        query = (
            select(table.c.point, mean.label("mean"), func.min(table.c.number).label("number"))
            .where(where & table.c.value.is_not(None))
            .group_by(table.c.point)
            .having(func.count() >= spec.repeat)
            .order_by(mean if spec.objective.direction == "minimize" else mean.desc(), table.c.point)
        )
        row = self._one(query.limit(1))
        if row is None:
            return None
        first = self._one(
            select(table).where((table.c.sweep_id == sweep.id) & (table.c.number == row["number"]))
        )
        assert first is not None
        return _trial(first), float(row["mean"])

    # ---- trials

    def add_trial(self, trial: TrialRecord) -> None:
        """Record a new trial, in the transaction that adds its run."""
        self._connection.execute(tables.trials.insert().values(**_trial_values(trial)))

    def save_trial(self, trial: TrialRecord) -> None:
        """Overwrite a trial."""
        table = tables.trials
        where = (table.c.sweep_id == trial.sweep_id) & (table.c.number == trial.number)
        self._connection.execute(table.update().where(where).values(**_trial_values(trial)))

    def trials(self, sweep_id: str, *, states: Sequence[TrialState] = ()) -> list[TrialRecord]:
        """Trials of a sweep by number."""
        table = tables.trials
        query = select(table).where(table.c.sweep_id == sweep_id).order_by(table.c.number)
        if states:
            query = query.where(table.c.state.in_(states))
        return [_trial(row) for row in self._all(query)]

    def trial_of(self, run_id: str) -> TrialRecord | None:
        """The trial that a run executes; None for a run of its own."""
        row = self._one(select(tables.trials).where(tables.trials.c.run_id == run_id))
        return _trial(row) if row is not None else None

    def count(self, sweep_id: str) -> dict[TrialState, int]:
        """How many trials are in each state."""
        table = tables.trials
        query = select(table.c.state, func.count().label("n")).where(table.c.sweep_id == sweep_id)
        return {TrialState(row["state"]): row["n"] for row in self._all(query.group_by(table.c.state))}

    def _one(self, query: Any) -> RowMapping | None:
        return self._connection.execute(query).mappings().first()

    def _all(self, query: Any) -> Sequence[RowMapping]:
        return self._connection.execute(query).mappings().all()


def _sweep_values(sweep: SweepRecord) -> dict[str, Any]:
    plain = ("id", "key", "spec_hash", "source", "user", "state", "message", "schedule_id")
    return {
        **{name: getattr(sweep, name) for name in plain},
        "name": sweep.spec.name,
        "spec": sweep.spec.model_dump(mode="json"),
        **{name: _text(getattr(sweep, name)) for name in _INSTANTS},
    }


def _sweep(row: RowMapping) -> SweepRecord:
    values = {key: row[key] for key in row if key != "name"}
    values["spec"] = SweepSpec.model_validate(values["spec"])
    values["state"] = SweepState(values["state"])
    return SweepRecord(**{**values, **{name: _instant(values[name]) for name in _INSTANTS}})


def _trial_values(trial: TrialRecord) -> dict[str, Any]:
    values = asdict(trial)
    values["values"] = {str(rung): value for rung, value in trial.values.items()}
    return {**values, **{name: _text(values[name]) for name in _INSTANTS}}


def _trial(row: RowMapping) -> TrialRecord:
    values = dict(row)
    values["state"] = TrialState(values["state"])
    values["values"] = {int(rung): value for rung, value in values["values"].items()}
    return TrialRecord(**{**values, **{name: _instant(values[name]) for name in _INSTANTS}})


def _text(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant else None


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
