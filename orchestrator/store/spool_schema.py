"""Tables of the spool, and what it hands out."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.store.outbox import AnyTask

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  id INTEGER PRIMARY KEY,
  run_id TEXT NOT NULL UNIQUE,
  mlflow_run_id TEXT,
  mlflow_experiment_id TEXT,
  parked TEXT,                         -- why nothing of this run is sent for now
  newest INTEGER NOT NULL DEFAULT 0,   -- seq of the run's last point
  shipped INTEGER NOT NULL DEFAULT 0   -- seq up to which MLflow has the run's points
);
CREATE INDEX IF NOT EXISTS runs_behind ON runs (id) WHERE newest > shipped;
CREATE TABLE IF NOT EXISTS series (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs (id),
  key TEXT NOT NULL,
  UNIQUE (run, key)
);
CREATE TABLE IF NOT EXISTS points (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival, never reused
  run INTEGER NOT NULL REFERENCES runs (id),
  series INTEGER NOT NULL REFERENCES series (id),
  step INTEGER NOT NULL,
  time_ms INTEGER NOT NULL,
  value REAL NOT NULL,
  attempt INTEGER NOT NULL,
  UNIQUE (series, step)
);
CREATE INDEX IF NOT EXISTS points_by_run ON points (run, seq);
CREATE TABLE IF NOT EXISTS refused_points (
  seq INTEGER PRIMARY KEY REFERENCES points (seq),
  error TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  run INTEGER NOT NULL REFERENCES runs (id),
  dedupe TEXT NOT NULL,
  body TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'failed')),
  tries INTEGER NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '',
  created_ms INTEGER NOT NULL,
  UNIQUE (run, dedupe)
);
CREATE INDEX IF NOT EXISTS outbox_pending ON outbox (run, seq) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS outbox_failed ON outbox (run, seq) WHERE state = 'failed';
"""


@dataclass(frozen=True)
class StoredPoint:
    """A point with its place in the order of arrival."""

    seq: int
    key: str
    step: int
    time_ms: int
    value: float


@dataclass(frozen=True)
class Stretches:
    """Which points to add up: those of a series after a step, apart for each `width` steps."""

    run_id: str
    key: str
    after_step: int
    width: int


@dataclass(frozen=True)
class StoredTask:
    """A task of the outbox. `seq` names this version of it: a replacement has another."""

    run_id: str
    seq: int
    task: AnyTask
    tries: int


@dataclass(frozen=True)
class TaskFailure:
    """A task that MLflow refused for good."""

    run_id: str
    task: AnyTask
    error: str


@dataclass(frozen=True)
class Backlog:
    """How far MLflow is behind. What belongs to parked runs counts as `parked_runs` only."""

    points: int
    tasks: int
    oldest_ms: int | None
    """Unix milliseconds of the oldest waiting point (when measured) or task (when queued)."""
    failed_tasks: int
    refused_points: int
    parked_runs: int
