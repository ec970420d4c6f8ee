"""The description of a run as MLflow shows it: what it is, where it ran, what it has saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

_MAX_ROWS = 20
"""Rows per table; MLflow keeps 8,000 characters of a description."""


@dataclass(frozen=True)
class AttemptRow:
    """One launch of the run."""

    number: int
    node: str
    pool: str
    device: str
    first_step: int | None
    last_step: int | None
    ended: str
    """Why it ended, in words; empty while it goes on."""
    energy: str = ""
    """What it has used, in words; empty where that is not known."""


@dataclass(frozen=True)
class CheckpointRow:
    """One committed checkpoint."""

    step: int
    attempt: int
    at: datetime
    size: int
    """Bytes."""
    metrics: str
    """What was measured there, in words."""
    uri: str


def describe(
    what: str,
    attempts: Sequence[AttemptRow],
    checkpoints: Sequence[CheckpointRow],
    state: str = "",
) -> str:
    """Markdown for `mlflow.note.content`. The newest rows are kept where there are too many."""
    parts = [what.strip()]
    if state:
        parts.append(" · ".join(part for part in (f"**{_cell(state)}**", _route(attempts)) if part))
    if attempts:
        parts.append("### Where it ran\n\n" + _attempts(attempts))
    if checkpoints:
        parts.append("### Checkpoints\n\n" + _checkpoints(checkpoints))
    return "\n\n".join(part for part in parts if part) + "\n"


def _route(rows: Sequence[AttemptRow]) -> str:
    """Where the run went, in one line: MLflow folds what comes below."""
    reached = [row for row in rows if row.last_step is not None]
    return " → ".join(f"{_cell(row.node)} to step {row.last_step:,}" for row in reached)


def _attempts(rows: Sequence[AttemptRow]) -> str:
    return _table(
        ("attempt", "node", "pool", "device", "steps", "energy", "ended"),
        [
            (
                str(row.number),
                row.node,
                row.pool,
                row.device,
                _steps(row),
                row.energy,
                row.ended or "still running",
            )
            for row in rows
        ],
    )


def _checkpoints(rows: Sequence[CheckpointRow]) -> str:
    return _table(
        ("step", "attempt", "saved", "size", "measured", "where"),
        [
            (
                f"{row.step:,}",
                str(row.attempt),
                f"{row.at:%Y-%m-%d %H:%M:%S} UTC",
                _size(row.size),
                row.metrics,
                f"`{row.uri}`",
            )
            for row in rows
        ],
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    left_out = max(0, len(rows) - _MAX_ROWS)
    lines = [_row(header), _row(["---"] * len(header))]
    lines += [_row([_cell(cell) for cell in row]) for row in rows[left_out:]]
    return "\n".join(lines) + (f"\n\n({left_out} earlier rows are not shown)" if left_out else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _steps(row: AttemptRow) -> str:
    if row.last_step is None:
        return ""
    return f"{row.first_step or 0:,} to {row.last_step:,}"


def _size(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
