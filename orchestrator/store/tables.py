"""The ledger's tables. Alembic migrations in `migrations/` create and change them."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

# Instants are ISO 8601 texts in UTC: they sort, and people can read the file.
runs = Table(
    "runs",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("key", String(200), nullable=False, unique=True),
    Column("name", String(63), nullable=False),
    Column("experiment", String(63), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("spec_hash", String(64), nullable=False),
    Column("source", Text, nullable=False),
    Column("user", String(100), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(24)),
    Column("message", Text, nullable=False),
    Column("retries_used", Integer, nullable=False),
    Column("pin_pool", String(63)),
    Column("stop", String(24)),
    Column("attempt", Integer, nullable=False),
    Column("not_before", String(40)),
    Column("restore_run", String(16)),
    Column("restore_step", Integer),
    Column("restore_path", Text),
    Column("seconds_used", Float, nullable=False),
    Column("gpu_seconds_used", Float, nullable=False, server_default="0"),
    Column("held", Boolean, nullable=False, server_default="0"),
    Column("front", Integer, nullable=False, server_default="0"),
    Column("avoid", JSON, nullable=False, server_default="[]"),
    Column("pause_at", Integer),
    Column("created_at", String(40), nullable=False),
    Column("started_at", String(40)),
    Column("ended_at", String(40)),
    Index("runs_by_state", "state", "seq"),
    Index("runs_by_name", "name", "seq"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("run_id", String(16), ForeignKey("runs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("ray_id", String(64), nullable=False),
    Column("node", String(63), nullable=False),
    Column("variant_index", Integer, nullable=False),
    Column("variant", JSON, nullable=False),
    Column("gpu_ids", JSON, nullable=False, server_default="[]"),
    Column("members", JSON, nullable=False, server_default="[]"),
    Column("backfill", Boolean, nullable=False, server_default="0"),
    Column("phase", String(16), nullable=False),
    Column("reason", String(24)),
    Column("message", Text, nullable=False),
    Column("exit_code", Integer),
    Column("device", String(16)),
    Column("device_name", Text),
    Column("first_step", Integer),
    Column("last_step", Integer),
    Column("timings", JSON, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("started_at", String(40)),
    Column("ended_at", String(40)),
    Index("attempts_by_phase", "phase"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(16), ForeignKey("runs.id"), nullable=False),
    Column("at", String(40), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("text", Text, nullable=False),
    Index("events_by_run", "run_id", "id"),
)

limits = Table(
    "limits",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("most", Integer, nullable=False),
)

sweeps = Table(
    "sweeps",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("key", String(200), nullable=False, unique=True),
    Column("name", String(63), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("spec_hash", String(64), nullable=False),
    Column("source", Text, nullable=False),
    Column("user", String(100), nullable=False),
    Column("state", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("schedule_id", String(16)),
    Column("created_at", String(40), nullable=False),
    Column("ended_at", String(40)),
    Index("sweeps_by_state", "state", "seq"),
    Index("sweeps_by_name", "name", "seq"),
)

trials = Table(
    "trials",
    metadata,
    Column("sweep_id", String(16), ForeignKey("sweeps.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("run_id", String(16), ForeignKey("runs.id"), nullable=False, unique=True),
    Column("point", Integer, nullable=False),
    Column("repeat", Integer, nullable=False),
    Column("params", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attrs", JSON, nullable=False),
    Column("bracket", Integer, nullable=False),
    Column("rung", Integer, nullable=False),
    Column("values", JSON, nullable=False),
    Column("value", Float),
    Column("step", Integer),
    Column("message", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("ended_at", String(40)),
    Index("trials_by_state", "sweep_id", "state"),
)
