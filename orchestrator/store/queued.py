"""Runs that wait, read from the ledger without parsing their specs: 100,000 of them in seconds.

SQLite takes out of each spec what the scheduler needs. Most of that is the same for very many runs and is
parsed once. What a spec does not say is what a spec of today says by itself.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Text, cast, func

from orchestrator.domain.records import QueuedRun
from orchestrator.domain.states import Reason
from orchestrator.spec.models import RunSpec, Variant
from orchestrator.spec.window import WindowRule
from orchestrator.store import tables

_PLAIN: Final = ("id", "seq", "name", "experiment", "user", "created_at", "not_before", "held", "front")
_MORE: Final = ("pin_pool", "seconds_used")
_OF_SPEC: Final = ("priority", "max_duration", "start", "wait", "window", "max_price", "placement")


def _of_spec(key: str) -> ColumnElement[Any]:
    return func.json_extract(tables.runs.c.spec, f"$.{key}").label(key)


COLUMNS: Final = (
    *(tables.runs.c[name] for name in (*_PLAIN, *_MORE)),
    cast(tables.runs.c.avoid, Text).label("avoid"),
    *map(_of_spec, _OF_SPEC),
)
"""What :func:`queued_run` is made from."""


def queued_run(row: Any) -> QueuedRun:
    """One row of :data:`COLUMNS`."""
    id_, seq, name, experiment, user, created, not_before, held, front, *rest = row
    pin_pool, seconds_used, avoid, priority, max_duration, start, wait, *rest = rest
    window, max_price, placement = rest
    return QueuedRun(
        id_,
        seq,
        name,
        sys.intern(experiment),
        sys.intern(user),
        datetime.fromisoformat(created),
        datetime.fromisoformat(not_before) if not_before else None,
        held,
        front,
        pin_pool,
        _avoid(avoid),
        seconds_used,
        _default("priority") if priority is None else priority,
        max_duration,
        _default("start") if start is None else start,
        _default("wait") if wait is None else wait,
        None if window is None else _window(window),
        max_price,
        _placement(placement),
    )


def _default(key: str) -> Any:
    return RunSpec.model_fields[key].default


@lru_cache(maxsize=4096)
def _placement(text: str) -> tuple[Variant, ...]:
    wanted = ({k: v for k, v in one.items() if k != "trainer"} for one in json.loads(text))
    return tuple(Variant.model_validate(one) for one in wanted)


@lru_cache(maxsize=4096)
def _window(text: str) -> tuple[WindowRule, ...]:
    return tuple(WindowRule.model_validate(one) for one in json.loads(text))


@lru_cache(maxsize=4096)
def _avoid(text: str) -> tuple[tuple[str, Reason], ...]:
    return tuple((node, Reason(end)) for node, end in json.loads(text))
