"""What all benchmark scripts share: options, medians, rows that name their peer, and facts of the machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer import processor

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Row:
    """One figure against its peer, both measured in the same run."""

    name: str
    value: float | None
    """None: not measured, and `note` says why."""
    unit: str
    peer: str
    peer_value: float | None
    ratio: float | None
    """value / peer_value."""
    goal: str
    met: bool | None
    spread: float | None
    """(max - min) / median of what `value` is the median of."""
    note: str = ""


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
    note: str = "",
) -> Row:
    """The median of `values` beside its peer's; `limit` is the goal for the value or for the ratio."""
    value = statistics.median(values)
    peer_value = statistics.median(peer_values) if peer_values else None
    ratio = value / peer_value if peer_value else None
    judged = value if of == "value" else ratio
    met = None if limit is None or judged is None else (judged <= limit if at_most else judged >= limit)
    goal = "" if limit is None else f"{of} {'<=' if at_most else '>='} {limit:g}"
    spread = (max(values) - min(values)) / value if len(values) > 1 and value else None
    return Row(name, value, unit, peer, peer_value, ratio, goal, met, spread, note)


def unmeasured(name: str, reason: str, goal: str = "") -> Row:
    """A figure that this machine or this run cannot give."""
    return Row(name, None, "", "", None, None, goal, None, None, reason)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    result.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    return result


def report(rows: Sequence[Row], file: Path | None, extra: Mapping[str, Any] | None = None) -> None:
    """Print the rows as a table and write them as JSON."""
    width = max([44, *(len(r.name) for r in rows)])
    print(f"\n{'figure':{width}} {'value':>12} {'peer':>12} {'ratio':>7}  {'goal':16} met")
    for r in rows:
        value = f"{r.value:9.4g} {r.unit:2}" if r.value is not None else "not measured"
        peer = f"{r.peer_value:12.4g}" if r.peer_value is not None else " " * 12
        ratio = f"{r.ratio:7.3f}" if r.ratio is not None else " " * 7
        met = {True: "yes", False: "NO", None: ""}[r.met]
        note = f" ({r.note.splitlines()[0]})" if r.note else ""
        print(f"{r.name:{width}} {value} {peer} {ratio}  {r.goal:16} {met}{note}")
    if file is not None:
        write(rows, file, extra)


def write(rows: Sequence[Row], file: Path, extra: Mapping[str, Any] | None = None) -> None:
    """The rows, the machine and whatever else as JSON. Called after each part, so that none is lost."""
    content = {
        "machine": machine(),
        "python": platform.python_version(),
        **(extra or {}),
        "rows": [asdict(r) for r in rows],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)


def machine() -> dict[str, Any]:
    """Where this runs. Starts no CUDA context."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor.name(),
        "cores": affinity,
        "flags": sorted(set(_FLAGS) & processor.flags()),
        "gpus": _gpus(),
        "torch": importlib.metadata.version("torch"),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2),
    }


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU as NVIDIA's tool tells them."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as e:
        return [f"unknown: {e}"]
    return done.stdout.strip().splitlines()
