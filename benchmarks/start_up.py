"""How soon a configuration that was compiled before makes its first step, beyond what imports take.

    python -m benchmarks.start_up [--device cuda] [--configuration gpu] [--quick] [--json FILE]

Starts `python -m trainer bench` several times, as processes of their own with a cache of their own. The first
is the peer: the same start where nothing has been compiled yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import GPU, LAPTOP, settings
from benchmarks.report import Row
from trainer.report import Startup

BEYOND_IMPORTS_S = 3.0
"""The goal."""


def main() -> None:
    """Measure and report."""
    options = report.parser(__doc__ or "")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--configuration", choices=("laptop", "gpu"), default="laptop")
    options.add_argument("--dtype", default="float32")
    args = options.parse_args()
    shape = GPU if args.configuration == "gpu" else LAPTOP
    wanted = settings(shape, args.device, args.dtype)
    with tempfile.TemporaryDirectory(prefix="start-up-") as name:
        cache = {**os.environ, "ORCH_CACHE_DIR": name}
        starts = [start(wanted, cache, Path(name)) for _ in range(3 if args.quick else 6)]
    report.report(rows(starts[0], starts[1:]), args.json, {"settings": wanted})


def start(wanted: dict[str, Any], env: dict[str, str], folder: Path) -> Startup:
    """One process from its start to a few steps.

    Raises:
        SystemExit: it failed; with what it said.
    """
    file = folder / "report.json"
    changes = [part for key, value in wanted.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "trainer", "bench", "--steps", "3", "--json", str(file), *changes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found = Startup(**json.loads(file.read_text(encoding="utf-8"))["start_up"])
    print(f"first step {found.first_step_s:.2f} s, beyond imports {found.beyond_imports_s:.2f} s", flush=True)
    return found


def rows(first: Startup, later: Sequence[Startup]) -> list[Row]:
    """Medians of the later starts, beside the first."""
    peer = "first start"
    beyond = [one.beyond_imports_s for one in later]
    imports = [one.imported_s + one.compiler_imports_s for one in later]
    return [
        report.row(
            "first step, beyond imports",
            beyond,
            "s",
            peer=peer,
            peer_values=[first.beyond_imports_s],
            limit=BEYOND_IMPORTS_S,
        ),
        report.row(
            "imports", imports, "s", peer=peer, peer_values=[first.imported_s + first.compiler_imports_s]
        ),
        report.row(
            "first step, all",
            [one.first_step_s for one in later],
            "s",
            peer=peer,
            peer_values=[first.first_step_s],
        ),
    ]


if __name__ == "__main__":
    main()
