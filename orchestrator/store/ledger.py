"""The controller's durable memory: runs, attempts, events and notices in SQLite.

A transaction that returned is on disk (WAL, `synchronous=FULL`). Writers are serialised: :meth:`Ledger.begin`
takes the write lock at once, so what a transaction reads cannot change before it writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, Engine, create_engine, event, func, or_, select, type_coerce
from sqlalchemy.engine import RowMapping

from orchestrator.domain.energy import KWH_J, EnergySource
from orchestrator.domain.limits import HOUR_S
from orchestrator.domain.records import AttemptRecord, EventRecord, Member, QueuedRun, RankEnd, RunRecord
from orchestrator.domain.states import OPEN_STATES, Phase, Reason, RunState
from orchestrator.errors import NotFoundError
from orchestrator.spec.models import RunSpec, Variant
from orchestrator.store import queued, tables
from orchestrator.store.notices import Notices
from orchestrator.store.schedule_book import ScheduleBook
from orchestrator.store.sweep_book import SweepBook

__all__ = ["OPEN_STATES", "Ledger", "Transaction"]


class Ledger:
    """The database. Safe to use from several threads of one process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
        event.listen(self._engine, "connect", _configure)
        self._lock = threading.RLock()
        self._joined: list[Watch] = []
        self._watchers: list[Watch] = []
        _migrate(self._engine)

    def watch(self, watch: Watch) -> None:
        """Call this after every commit that changed runs or attempts, in the order of commits."""
        with self._lock:
            self._watchers.append(watch)

    def join(self, hook: Watch) -> None:
        """Call this at the end of every transaction that changed runs or attempts, before its commit: what it
        writes is committed with the rest, or not at all."""
        with self._lock:
            self._joined.append(hook)

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """A transaction that may write; committed durably at the end of the block, undone by an exception."""
        with self._lock, self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            transaction = Transaction(connection)
            yield transaction
            if transaction.changed:
                for hook in self._joined:
                    hook(transaction)
            connection.commit()
            if transaction.changed:
                for watch in self._watchers:
                    watch(transaction)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view; writing through it is a mistake."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield Transaction(connection)


Watch = Callable[["Transaction"], None]


class Transaction:
    """What can be asked of and told to the ledger."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.runs_changed: dict[str, RunRecord] = {}
        self.attempts_changed: dict[tuple[str, int], AttemptRecord] = {}
        self.sweeps = SweepBook(connection)
        self.schedules = ScheduleBook(connection)
        self.notices = Notices(connection)

    @property
    def changed(self) -> bool:
        """Whether it has changed a run or an attempt."""
        return bool(self.runs_changed or self.attempts_changed)

    # ---- runs

    def add_run(self, run: RunRecord) -> RunRecord:
        """Record a new run and answer it with its sequence number. Its id and key must be new."""
        values = _run_values(run)
        result = self._connection.execute(tables.runs.insert().values(**values))
        assert result.inserted_primary_key is not None
        run = replace(run, seq=int(result.inserted_primary_key[0]))
        self.runs_changed[run.id] = run
        return run

    def save_run(self, run: RunRecord) -> None:
        """Overwrite what may change of a run."""
        values = _run_values(run)
        for fixed in ("id", "key", "spec", "spec_hash", "source", "name", "experiment", "created_at"):
            del values[fixed]
        self._connection.execute(tables.runs.update().where(tables.runs.c.id == run.id).values(**values))
        self.runs_changed[run.id] = run

    def run(self, run_id: str) -> RunRecord:
        """One run by its whole id; NotFoundError."""
        row = self._one(select(tables.runs).where(tables.runs.c.id == run_id))
        if row is None:
            raise NotFoundError(f"no run has the id {run_id}", remedy="`orch ls --all` lists every run")
        return _run(row)

    def run_by_key(self, key: str) -> RunRecord | None:
        """The run that was submitted with this key."""
        row = self._one(select(tables.runs).where(tables.runs.c.key == key))
        return _run(row) if row is not None else None

    def find(self, ref: str) -> RunRecord:
        """A run by id, unique beginning of an id, or name (its newest run); NotFoundError."""
        table = tables.runs
        exact = self._one(select(table).where(table.c.id == ref))
        if exact is not None:
            return _run(exact)
        named = self._one(select(table).where(table.c.name == ref).order_by(table.c.seq.desc()).limit(1))
        if named is not None:
            return _run(named)
        begun = (
            self._all(select(table).where(table.c.id.startswith(ref, autoescape=True)).limit(2))
            if ref
            else []
        )
        if len(begun) == 1:
            return _run(begun[0])
        problem = f"several runs have an id that begins with {ref}" if begun else f"no run is called {ref}"
        raise NotFoundError(problem, remedy="`orch ls --all` lists every run with its id")

    def runs(
        self, *, states: Sequence[RunState] = (), experiment: str | None = None, limit: int | None = None
    ) -> list[RunRecord]:
        """Runs, newest first."""
        query = select(tables.runs).order_by(tables.runs.c.seq.desc())
        if states:
            query = query.where(tables.runs.c.state.in_(states))
        if experiment:
            query = query.where(tables.runs.c.experiment == experiment)
        if limit is not None:
            query = query.limit(limit)
        return [_run(row) for row in self._all(query)]

    def each_queued(self) -> Iterator[QueuedRun]:
        """All runs that wait, one after the other. Their specs are not read as a whole: that would take
        longer than everything else when a controller starts."""
        table = tables.runs
        query = select(*queued.COLUMNS).where(table.c.state == RunState.QUEUED).order_by(table.c.seq)
        rows = self._connection.execution_options(yield_per=500).execute(query)
        return map(queued.queued_run, rows)

    def queued_with_limits(self) -> list[tuple[str, datetime | None]]:
        """Ids of the runs that wait and have a deadline, with it; None for those that have used up their
        longest duration, GPU-hours or energy."""
        table, spec = tables.runs, type_coerce(tables.runs.c.spec, JSON)
        deadline = spec["deadline"].as_string()
        spent = or_(
            table.c.seconds_used >= spec["max_duration"].as_float(),
            table.c.gpu_seconds_used >= spec["gpu_hours"].as_float() * HOUR_S,
            table.c.joules_used >= spec["kwh"].as_float() * KWH_J,
        )
        query = select(table.c.id, deadline.label("deadline"), func.coalesce(spent, False).label("spent"))
        rows = self._all(query.where((table.c.state == RunState.QUEUED) & (deadline.is_not(None) | spent)))
        return [(row["id"], None if row["spent"] else _instant(row["deadline"])) for row in rows]

    def highest_front(self) -> int:
        """The largest number that `orch queue top` has given."""
        row = self._one(select(func.max(tables.runs.c.front).label("front")))
        return int(row["front"] or 0) if row is not None else 0

    # ---- limits

    def limits(self, kind: str) -> dict[str, int]:
        """Most attempts at a time by name of a `pool` or an `experiment`."""
        table = tables.limits
        return {row["name"]: row["most"] for row in self._all(select(table).where(table.c.kind == kind))}

    def set_limit(self, kind: str, name: str, most: int | None) -> None:
        """Set a limit, or take it away with None."""
        table = tables.limits
        self._connection.execute(table.delete().where((table.c.kind == kind) & (table.c.name == name)))
        if most is not None:
            self._connection.execute(table.insert().values(kind=kind, name=name, most=most))

    # ---- attempts

    def add_attempt(self, attempt: AttemptRecord) -> None:
        """Record a new attempt, before anything is launched for it."""
        self._connection.execute(tables.attempts.insert().values(**_attempt_values(attempt)))
        self.attempts_changed[attempt.run_id, attempt.number] = attempt

    def save_attempt(self, attempt: AttemptRecord) -> None:
        """Overwrite an attempt."""
        table = tables.attempts
        where = (table.c.run_id == attempt.run_id) & (table.c.number == attempt.number)
        self._connection.execute(table.update().where(where).values(**_attempt_values(attempt)))
        self.attempts_changed[attempt.run_id, attempt.number] = attempt

    def attempt(self, run_id: str, number: int) -> AttemptRecord:
        """One attempt; NotFoundError."""
        table = tables.attempts
        row = self._one(select(table).where((table.c.run_id == run_id) & (table.c.number == number)))
        if row is None:
            raise NotFoundError(f"run {run_id} has no attempt {number}")
        return _attempt(row)

    def attempts(self, run_id: str) -> list[AttemptRecord]:
        """All attempts of a run, oldest first."""
        table = tables.attempts
        query = select(table).where(table.c.run_id == run_id).order_by(table.c.number)
        return [_attempt(row) for row in self._all(query)]

    def last_attempts(self, run_ids: Sequence[str]) -> dict[str, AttemptRecord]:
        """The newest attempt of each of these runs."""
        table = tables.attempts
        query = select(table).where(table.c.run_id.in_(run_ids)).order_by(table.c.number)
        return {row["run_id"]: _attempt(row) for row in self._all(query)}

    def open_attempts(self) -> list[AttemptRecord]:
        """Attempts that have not ended."""
        table = tables.attempts
        return [_attempt(row) for row in self._all(select(table).where(table.c.phase != Phase.ENDED))]

    def ended_since(self, since: datetime, most: int) -> list[AttemptRecord]:
        """The newest `most` attempts that have ended since then, oldest first. Reads the whole table."""
        table = tables.attempts
        query = select(table).where((table.c.phase == Phase.ENDED) & (table.c.ended_at >= since.isoformat()))
        rows = self._all(query.order_by(table.c.ended_at.desc()).limit(most))
        return [_attempt(row) for row in reversed(rows)]

    def counted_since(self, since: datetime) -> list[AttemptRecord]:
        """Attempts whose energy was written down since then. Reads the whole table."""
        table = tables.attempts
        where = table.c.energy_source.is_not(None) & (table.c.energy_at >= since.isoformat())
        return [_attempt(row) for row in self._all(select(table).where(where))]

    # ---- events

    def add_event(self, run_id: str, at: datetime, kind: str, text: str) -> None:
        """Append to the history of a run."""
        values = {"run_id": run_id, "at": at.isoformat(), "kind": kind, "text": text}
        self._connection.execute(tables.events.insert().values(**values))

    def events(self, run_id: str, limit: int = 200) -> list[EventRecord]:
        """The newest events of a run, oldest first."""
        table = tables.events
        query = select(table).where(table.c.run_id == run_id).order_by(table.c.id.desc()).limit(limit)
        rows = self._all(query)
        return [EventRecord(r["run_id"], _instant(r["at"]), r["kind"], r["text"]) for r in reversed(rows)]

    def _one(self, query: Any) -> RowMapping | None:
        return self._connection.execute(query).mappings().first()

    def _all(self, query: Any) -> Sequence[RowMapping]:
        return self._connection.execute(query).mappings().all()


def _configure(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by us, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _maybe(text: str | None) -> datetime | None:
    return _instant(text) if text else None


def _source(text: str | None) -> EnergySource | None:
    return EnergySource(text) if text else None


def _text(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant else None


def _run_values(run: RunRecord) -> dict[str, Any]:
    plain = (
        "id",
        "key",
        "spec_hash",
        "source",
        "user",
        "state",
        "reason",
        "message",
        "retries_used",
        "pin_pool",
    )
    more = ("stop", "attempt", "restore_run", "restore_step", "restore_path", "seconds_used")
    queue = ("gpu_seconds_used", "held", "front", "pause_at")
    energy = ("joules_used", "energy_source", "cost")
    return {
        **{name: getattr(run, name) for name in (*plain, *more, *queue, *energy)},
        "name": run.spec.name,
        "experiment": run.spec.experiment,
        "spec": run.spec.model_dump_json(),
        "avoid": [list(one) for one in run.avoid],
        "not_before": _text(run.not_before),
        "created_at": _text(run.created_at),
        "started_at": _text(run.started_at),
        "ended_at": _text(run.ended_at),
    }


@lru_cache(maxsize=1024)
def _spec(text: str) -> RunSpec:
    """Specs cannot be changed, so records may share them."""
    return RunSpec.model_validate_json(text)


def _run(row: RowMapping) -> RunRecord:
    values = {key: row[key] for key in row if key not in ("name", "experiment")}
    values["spec"] = _spec(values["spec"])
    values["avoid"] = tuple((node, Reason(end)) for node, end in values["avoid"])
    values["state"] = RunState(values["state"])
    values["energy_source"] = _source(values["energy_source"])
    for key in ("reason", "stop"):
        values[key] = Reason(values[key]) if values[key] else None
    for key in ("not_before", "created_at", "started_at", "ended_at"):
        values[key] = _maybe(values[key])
    return RunRecord(**values)


def _attempt_values(attempt: AttemptRecord) -> dict[str, Any]:
    plain = ("run_id", "number", "ray_id", "node", "variant_index", "phase", "reason", "message", "exit_code")
    more = ("device", "device_name", "first_step", "last_step", "timings", "backfill")
    energy = ("joules", "energy_source", "cost")
    return {
        **{name: getattr(attempt, name) for name in (*plain, *more, *energy)},
        "energy_at": _text(attempt.energy_at),
        "variant": attempt.variant.model_dump(mode="json"),
        "gpu_ids": list(attempt.gpu_ids),
        "members": [_member_values(member) for member in attempt.members],
        "created_at": _text(attempt.created_at),
        "started_at": _text(attempt.started_at),
        "ended_at": _text(attempt.ended_at),
    }


def _member_values(member: Member) -> dict[str, Any]:
    values = asdict(member)
    if member.end:
        values["end"]["at"] = _text(member.end.at)
    return values


def _member(values: dict[str, Any]) -> Member:
    end = values.get("end")
    if end:
        end = RankEnd(**{**end, "reason": Reason(end["reason"]), "at": datetime.fromisoformat(end["at"])})
    joules = values.get("joules", 0.0)
    return Member(values["ray_id"], values["node"], tuple(values["gpu_ids"]), end, joules)


def _attempt(row: RowMapping) -> AttemptRecord:
    values = dict(row)
    values["variant"] = Variant.model_validate(values["variant"])
    values["gpu_ids"] = tuple(values["gpu_ids"])
    values["members"] = tuple(_member(member) for member in values["members"])
    values["phase"] = Phase(values["phase"])
    values["energy_source"] = _source(values["energy_source"])
    values["reason"] = Reason(values["reason"]) if values["reason"] else None
    for key in ("created_at", "started_at", "ended_at", "energy_at"):
        values[key] = _maybe(values[key])
    return AttemptRecord(**values)
