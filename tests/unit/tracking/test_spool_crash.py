"""kill -9 at any moment: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.store.spool import Spool

_WRITER = """
import sys
from pathlib import Path
from orchestrator.messages_agent import Point
from orchestrator.store.outbox import LogDataset
from orchestrator.store.spool import Spool
spool = Spool(Path(sys.argv[1]))
first = int(sys.argv[2])
print("ready", flush=True)
for beat in range(first, first + 100_000):
    spool.add_points("r", 1, [Point(key=k, step=beat, time_ms=beat, value=beat) for k in "abc"])
    spool.enqueue("r", LogDataset(name=f"d{beat}", digest="x"))
    print(beat, flush=True)
"""


def test_acknowledged_points_survive_kill_9(tmp_path: Path) -> None:
    acknowledged = -1
    rng = random.Random(4)
    for _ in range(3):
        argv = [sys.executable, "-c", _WRITER, str(tmp_path / "p.db"), str(acknowledged + 1)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.05, 0.25))
            child.send_signal(signal.SIGKILL)
            lines = child.stdout.read().splitlines()
        assert lines, "the writer was killed before it wrote anything"
        acknowledged = max(map(int, lines))
        _check(tmp_path / "p.db", acknowledged)


def _check(path: Path, acknowledged: int) -> None:
    spool = Spool(path)
    steps: dict[str, set[int]] = {}
    for found in spool.points("r"):
        assert found.value == found.step
        steps.setdefault(found.key, set()).add(found.step)
    assert set(steps) == {"a", "b", "c"}
    assert steps["a"] == steps["b"] == steps["c"], "a beat is stored whole or not at all"
    assert steps["a"] >= set(range(acknowledged + 1))
    assert len(spool.tasks("r", limit=1_000_000)) >= acknowledged + 1
    spool.close()
