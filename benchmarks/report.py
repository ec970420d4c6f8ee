"""What all benchmark scripts share: options, medians, and rows that name their peer."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One figure against its peer, both measured in the same run."""

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float | None
    ratio: float | None
    """value / peer_value."""
    goal: str
    met: bool | None
    spread: float | None
    """(max - min) / median of what `value` is the median of."""


def row(
    name: str,
    values: Sequence[float],
    unit: str,
    *,
    peer: str = "",
    peer_values: Sequence[float] = (),
    limit: float | None = None,
    of: Literal["value", "ratio"] = "value",
    at_most: bool = True,
) -> Row:
    """The median of `values` beside its peer's; `limit` is the goal for the value or for the ratio."""
    value = statistics.median(values)
    peer_value = statistics.median(peer_values) if peer_values else None
    ratio = value / peer_value if peer_value else None
    judged = value if of == "value" else ratio
    met = None if limit is None or judged is None else (judged <= limit if at_most else judged >= limit)
    goal = "" if limit is None else f"{of} {'<=' if at_most else '>='} {limit:g}"
    spread = (max(values) - min(values)) / value if len(values) > 1 and value else None
    return Row(name, value, unit, peer, peer_value, ratio, goal, met, spread)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    result.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    return result


def report(rows: Sequence[Row], file: Path | None) -> None:
    """Print the rows as a table and write them as JSON."""
    print(f"\n{'figure':44} {'value':>12} {'peer':>12} {'ratio':>7}  {'goal':16} met")
    for r in rows:
        peer = f"{r.peer_value:12.4g}" if r.peer_value is not None else " " * 12
        ratio = f"{r.ratio:7.3f}" if r.ratio is not None else " " * 7
        met = {True: "yes", False: "NO", None: ""}[r.met]
        print(f"{r.name:44} {r.value:9.4g} {r.unit:2} {peer} {ratio}  {r.goal:16} {met}")
    if file is not None:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        content = {"machine": machine, "python": platform.python_version(), "rows": [asdict(r) for r in rows]}
        file.write_text(json.dumps(content, indent=2) + "\n")
