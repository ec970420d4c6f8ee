"""Schedules and their fires in the ledger: part of a :class:`~orchestrator.store.ledger.Transaction`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.engine import RowMapping

from orchestrator.domain.schedules import (
    CatchUp,
    FireRecord,
    FireState,
    Overlap,
    ScheduleRecord,
    ScheduleState,
)
from orchestrator.domain.states import OPEN_STATES
from orchestrator.errors import NotFoundError
from orchestrator.spec.models import RunSpec
from orchestrator.spec.sweep import SweepSpec
from orchestrator.store import tables

_PLAIN = ("id", "key", "name", "source", "user", "cron", "tz", "overlap", "catch_up", "state", "message")
_INSTANTS = ("at", "cursor", "created_at", "ended_at")
_CHANGING = ("state", "message", "cursor", "ended_at")
_FIRE_INSTANTS = ("due", "last", "decided_at")
OPEN = (ScheduleState.ACTIVE, ScheduleState.PAUSED)
"""The states in which a schedule holds its name."""
_KINDS: dict[str, type[RunSpec] | type[SweepSpec]] = {"run": RunSpec, "sweep": SweepSpec}


class ScheduleBook:
    """What can be asked of and told to the ledger about schedules."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # ---- schedules

    def add(self, schedule: ScheduleRecord) -> ScheduleRecord:
        """Record a new schedule and answer it with its sequence number. Its id and key must be new."""
        result = self._connection.execute(tables.schedules.insert().values(**_schedule_values(schedule)))
        assert result.inserted_primary_key is not None
        return replace(schedule, seq=int(result.inserted_primary_key[0]))

    def save(self, schedule: ScheduleRecord) -> None:
        """Overwrite what may change of a schedule: its state, and up to when due times are decided."""
        values = {key: value for key, value in _schedule_values(schedule).items() if key in _CHANGING}
        table = tables.schedules
        self._connection.execute(table.update().where(table.c.id == schedule.id).values(**values))

    def get(self, schedule_id: str) -> ScheduleRecord:
        """One schedule by its whole id; NotFoundError."""
        row = self._one(select(tables.schedules).where(tables.schedules.c.id == schedule_id))
        if row is None:
            raise _unknown(schedule_id)
        return _schedule(row)

    def by_key(self, key: str) -> ScheduleRecord | None:
        """The schedule that was added with this key."""
        row = self._one(select(tables.schedules).where(tables.schedules.c.key == key))
        return _schedule(row) if row is not None else None

    def named(self, name: str) -> ScheduleRecord | None:
        """The schedule of this name that can still fire by itself; there is one at most."""
        table = tables.schedules
        row = self._one(select(table).where((table.c.name == name) & table.c.state.in_(OPEN)))
        return _schedule(row) if row is not None else None

    def find(self, ref: str) -> ScheduleRecord:
        """A schedule by id, name (one that can still fire, else the newest) or unique beginning of an id;
        NotFoundError."""
        table = tables.schedules
        exact = self._one(select(table).where(table.c.id == ref))
        if exact is not None:
            return _schedule(exact)
        of_name = select(table).where(table.c.name == ref)
        row = self._one(of_name.order_by(table.c.state.in_(OPEN).desc(), table.c.seq.desc()).limit(1))
        if row is None and ref:
            begun = self._all(select(table).where(table.c.id.startswith(ref, autoescape=True)).limit(2))
            row = begun[0] if len(begun) == 1 else None
        if row is None:
            raise _unknown(ref)
        return _schedule(row)

    def all(self, *, states: Sequence[ScheduleState] = ()) -> list[ScheduleRecord]:
        """Schedules, oldest first."""
        query = select(tables.schedules).order_by(tables.schedules.c.seq)
        if states:
            query = query.where(tables.schedules.c.state.in_(states))
        return [_schedule(row) for row in self._all(query)]

    # ---- fires

    def add_fire(self, fire: FireRecord) -> FireRecord:
        """Record what was decided about a due time, which must be new, and answer it with its number."""
        values = {key: value for key, value in _fire_values(fire).items() if key != "seq"}
        result = self._connection.execute(tables.fires.insert().values(**values))
        assert result.inserted_primary_key is not None
        return replace(fire, seq=int(result.inserted_primary_key[0]))

    def save_fire(self, fire: FireRecord) -> None:
        """Overwrite a fire."""
        table = tables.fires
        self._connection.execute(table.update().where(table.c.seq == fire.seq).values(**_fire_values(fire)))

    def fire(self, schedule_id: str, local: str) -> FireRecord | None:
        """The fire of this local time or key."""
        table = tables.fires
        row = self._one(select(table).where((table.c.schedule_id == schedule_id) & (table.c.local == local)))
        return _fire(row) if row is not None else None

    def waiting(self, schedule_id: str | None = None) -> list[FireRecord]:
        """Fires that wait, of one schedule or of all, oldest first."""
        table = tables.fires
        query = select(table).where(table.c.state == FireState.WAITING).order_by(table.c.seq)
        if schedule_id is not None:
            query = query.where(table.c.schedule_id == schedule_id)
        return [_fire(row) for row in self._all(query)]

    def newest_created(self, schedule_id: str) -> FireRecord | None:
        """The fire that was the last to create work."""
        table = tables.fires
        of_schedule = (table.c.state == FireState.CREATED) & (table.c.schedule_id == schedule_id)
        row = self._one(select(table).where(of_schedule).order_by(table.c.seq.desc()).limit(1))
        return _fire(row) if row is not None else None

    def open_runs(self, sweep_id: str) -> bool:
        """Whether something can still happen to a run of this sweep's trials."""
        runs, trials = tables.runs, tables.trials
        query = select(runs.c.id).join(trials, trials.c.run_id == runs.c.id)
        query = query.where((trials.c.sweep_id == sweep_id) & runs.c.state.in_(OPEN_STATES)).limit(1)
        return self._one(query) is not None

    def work_states(self, fires: Sequence[FireRecord]) -> dict[str, str]:
        """The state of each run and sweep that these fires have created, by id."""
        found: dict[str, str] = {}
        for table, ids in (
            (tables.runs, [fire.run_id for fire in fires if fire.run_id]),
            (tables.sweeps, [fire.sweep_id for fire in fires if fire.sweep_id]),
        ):
            query = select(table.c.id, table.c.state).where(table.c.id.in_(ids))
            found |= {row["id"]: row["state"] for row in self._all(query)}
        return found

    def fires_after(self, schedule_id: str, instant: datetime) -> list[FireRecord]:
        """Fires of due times after this instant, oldest first; of several due times at least one is."""
        table = tables.fires
        later = (table.c.schedule_id == schedule_id) & (table.c.last > _text(instant))
        return [_fire(row) for row in self._all(select(table).where(later).order_by(table.c.last))]

    def fires(self, schedule_id: str, limit: int) -> list[FireRecord]:
        """The newest fires of a schedule, newest first."""
        table = tables.fires
        query = select(table).where(table.c.schedule_id == schedule_id).order_by(table.c.seq.desc())
        return [_fire(row) for row in self._all(query.limit(limit))]

    def _one(self, query: Any) -> RowMapping | None:
        return self._connection.execute(query).mappings().first()

    def _all(self, query: Any) -> Sequence[RowMapping]:
        return self._connection.execute(query).mappings().all()


def _unknown(ref: str) -> NotFoundError:
    return NotFoundError(
        f"no schedule is called {ref}", remedy="`orch schedule ls --all` lists every schedule"
    )


def _schedule_values(schedule: ScheduleRecord) -> dict[str, Any]:
    return {
        **{name: getattr(schedule, name) for name in _PLAIN},
        "kind": "sweep" if isinstance(schedule.spec, SweepSpec) else "run",
        "spec": schedule.spec.model_dump(mode="json"),
        **{name: _text(getattr(schedule, name)) for name in _INSTANTS},
    }


def _schedule(row: RowMapping) -> ScheduleRecord:
    values = {key: row[key] for key in row if key != "kind"}
    values["spec"] = _KINDS[row["kind"]].model_validate(values["spec"])
    values["overlap"] = Overlap(values["overlap"])
    values["catch_up"] = CatchUp(values["catch_up"])
    values["state"] = ScheduleState(values["state"])
    return ScheduleRecord(**{**values, **{name: _instant(values[name]) for name in _INSTANTS}})


def _fire_values(fire: FireRecord) -> dict[str, Any]:
    return {**asdict(fire), **{name: _text(getattr(fire, name)) for name in _FIRE_INSTANTS}}


def _fire(row: RowMapping) -> FireRecord:
    values = {**row, "state": FireState(row["state"])}
    return FireRecord(**{**values, **{name: _instant(values[name]) for name in _FIRE_INSTANTS}})


def _text(instant: datetime | None) -> str | None:
    """ISO 8601 in UTC and always with microseconds, so that texts sort as instants do."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds") if instant else None


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
