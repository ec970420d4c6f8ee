"""What the scheduler costs with 100,000 queued runs: 1,000 paper nodes, the real ledger and service.

The nodes are full. Then slots are freed, 1 to 64 at a time, and every pass that fills them again is timed as
a whole: planning, and recording with fsync. Submits are timed at the full length of the queue, as the handler
of the API makes them, without HTTP.
"""

from __future__ import annotations

import random
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.report import Row, parser, report, row
from orchestrator.clock import SYSTEM
from orchestrator.control.config import ControllerConfig
from orchestrator.control.controller import Controller
from orchestrator.control.fleet import Fleet
from orchestrator.domain.fleet import ActorInfo, NodeInfo
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import Reason, RunState
from orchestrator.messages import SubmitRequest
from orchestrator.messages_agent import Outcome
from orchestrator.settings import Home
from orchestrator.spec.identity import spec_hash
from orchestrator.spec.models import CommandProgram, RunSpec, Variant

PASS_MS = 50.0
SUBMIT_MS = 50.0
MEMORY_MB = 500.0
FREED = (1, 2, 4, 8, 16, 32, 64)
_BATCH = 2000


class PaperGateway:
    """A cluster on which nothing happens."""

    def __init__(self, nodes: list[NodeInfo]) -> None:
        self.fleet = nodes
        self.connected = True

    def nodes(self, timeout_s: float = 5.0) -> list[NodeInfo]:
        """All of them."""
        return self.fleet

    def launch(self, name: str, **_: Any) -> bool:
        """Nothing is launched."""
        return True

    def probe(self, name: str, timeout_s: float = 5.0) -> ActorInfo:
        """All is well."""
        return ActorInfo(name, "alive", True)

    def kill(self, name: str, timeout_s: float = 5.0) -> None:
        """Nothing runs."""

    def actors(self, timeout_s: float = 5.0) -> list[str]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing to do."""


def main() -> None:
    """Measure and report."""
    args = parser(__doc__ or "").parse_args()
    runs, nodes = (10_000, 100) if args.quick else (100_000, 1_000)
    with tempfile.TemporaryDirectory(prefix="orch-scale-") as folder:
        rows = measure(Path(folder), runs, nodes)
    report(rows, args.json, {"runs": runs, "nodes": nodes})


def measure(folder: Path, runs: int, nodes: int) -> list[Row]:
    """All figures."""
    random.seed(7)
    fleet = Fleet(tuple(_node(number) for number in range(nodes)), connected=True)
    config = ControllerConfig(
        Home(folder), "http://127.0.0.1:1", (folder / "store").as_uri(), "127.0.0.1:2", ""
    )
    before = _memory_mb()
    controller = Controller(config, PaperGateway(list(fleet.nodes)))  # type: ignore[arg-type]
    _fill_queue(controller, runs)
    began = time.perf_counter()
    while controller.scheduling.round(fleet)[1]:
        pass
    filled_s = time.perf_counter() - began
    started = len(controller.board.open_attempts())
    print(
        f"  {started} attempts started in {filled_s:.1f} s, {len(controller.board.queue)} runs wait",
        flush=True,
    )
    idle = [_timed(lambda: controller.scheduling.round(fleet)) for _ in range(30)]
    passes = {
        count: [_freed(controller, fleet, count) for _ in range(5)] for count in FREED if count <= started
    }
    submits = _submits(controller, 300 if runs < 100_000 else 2000)
    why = [_timed(lambda: _why(controller, fleet)) for _ in range(20)]
    peak = _memory_mb()
    planned = _planned(controller, fleet)
    controller.ledger.close()
    for count, times in passes.items():
        print(f"  {count} slots freed: {statistics.median(times):.1f} ms", flush=True)
    most = max(passes)
    per_slot = (statistics.median(passes[most]) - statistics.median(idle)) / most
    first = statistics.median(passes[1]) - statistics.median(idle)
    reopened = _reopen(config, fleet)
    return [
        row("a pass, nothing is free", idle, "ms", limit=PASS_MS),
        row("a pass that fills one slot, recorded", passes[1], "ms", limit=PASS_MS),
        row("a pass that starts 32, planned only", planned, "ms", limit=PASS_MS),
        row(
            f"per slot at {most} freed, against one at 1",
            [per_slot],
            "ms",
            peer="one slot at a time",
            peer_values=[first],
            limit=1.1,
            of="ratio",
        ),
        row("submit, 99th percentile", [_percentile(submits, 0.99)], "ms", limit=SUBMIT_MS),
        row("submit, median", submits, "ms"),
        row("why a run waits, pass included", why, "ms"),
        row("memory of the controller, peak", [peak], "MB", limit=MEMORY_MB, note=f"{before:.0f} MB before"),
        row("controller reads its ledger at its start", [reopened], "s"),
    ]


def _node(number: int) -> NodeInfo:
    gpu = number % 4 == 0
    return NodeInfo(
        ray_id=f"ray-{number:04}",
        name=f"node-{number:04}",
        pool="gpu" if gpu else f"cpu{number % 3}",
        alive=True,
        address="127.0.0.1",
        cpus=16 if gpu else 4,
        gpus=2 if gpu else 0,
        memory=64 * 2**30,
    )


def _spec(number: int) -> RunSpec:
    """One of some hundred kinds of run."""
    cpus = random.choice((1, 2, 4))
    pool = f"cpu{random.randrange(3)}"
    placement = [Variant(pool=pool, cpus=cpus)]
    if random.random() < 0.5:
        placement.insert(0, Variant(pool="gpu", cpus=random.choice((2, 4, 8)), gpus=random.choice((1, 2))))
    return RunSpec(
        name=f"run-{number}",
        experiment=f"experiment-{random.randrange(50)}",
        command=CommandProgram(argv=["true"]),
        placement=placement,
        priority=random.choice((0, 0, 0, 0, 5, -5)),
        max_duration=random.choice((None, 600.0, 3600.0)),
    )


def _fill_queue(controller: Controller, runs: int) -> None:
    now = SYSTEM.now()
    for begin in range(0, runs, _BATCH):
        with controller.ledger.begin() as ledger:
            for number in range(begin, min(runs, begin + _BATCH)):
                spec = _spec(number)
                ledger.add_run(
                    RunRecord(
                        id=f"{number:08}",
                        seq=0,
                        key=f"key-{number}",
                        spec=spec,
                        spec_hash=spec_hash(spec),
                        source="",
                        user=f"user-{random.randrange(20)}",
                        state=RunState.QUEUED,
                        created_at=now + timedelta(milliseconds=number),
                    )
                )


def _freed(controller: Controller, fleet: Fleet, count: int) -> float:
    """Time of the passes that fill so many slots again, in milliseconds."""
    attempts = random.sample(controller.board.open_attempts(), count)
    for attempt in attempts:
        _end(controller, attempt.run_id, attempt.number)
    began = time.perf_counter()
    while controller.scheduling.round(fleet)[1]:
        pass
    return (time.perf_counter() - began) * 1e3


def _end(controller: Controller, run_id: str, number: int) -> None:
    outcome = Outcome(reason=Reason.COMPLETED, message="")
    controller.outcomes.end(run_id, number, outcome)


def _planned(controller: Controller, fleet: Fleet) -> list[float]:
    """The same on empty nodes, without recording."""
    others = (replace(node, ray_id=f"new-{node.ray_id}", name=f"new-{node.name}") for node in fleet.nodes)
    empty = replace(fleet, nodes=tuple(others))
    found = []
    for _ in range(10):
        began = time.perf_counter()
        desk = controller.scheduling.desk(empty)
        found.append((time.perf_counter() - began) * 1e3)
        assert len(desk.plan.starts) == 32
    return found


def _submits(controller: Controller, count: int) -> list[float]:
    found = []
    for number in range(count):
        request = SubmitRequest(spec=_spec(number), key=f"late-{number}", user="ada")
        found.append(_timed(lambda request=request: controller.service.submit(request)))
    return found


def _why(controller: Controller, fleet: Fleet) -> None:
    (run_id,) = controller.scheduling.first_in_line(1)
    controller.scheduling.forget_shown()
    assert controller.scheduling.why(run_id, fleet) is not None


def _reopen(config: ControllerConfig, fleet: Fleet) -> float:
    began = time.perf_counter()
    controller = Controller(config, PaperGateway(list(fleet.nodes)))  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    controller.ledger.close()
    return seconds


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def _percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def _memory_mb() -> float:
    """Most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
