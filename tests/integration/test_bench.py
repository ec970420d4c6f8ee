"""``python -m trainer bench``, and traces of a few steps."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.contract import EXIT_USER_ERROR, NullContext
from tests.unit.trainer.support import TINY, clean_env, tiny, write_text
from trainer import bench as benchmark
from trainer.__main__ import _parser
from trainer.bench import Stopwatch, bench
from trainer.config import TrainerConfig
from trainer.engine import EagerEngine
from trainer.power import Energy
from trainer.report import Power, Report, Shares, Speed, Startup, lines
from trainer.tracing import TRACED_STEPS, covered


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(benchmark, "_WARM_UP_S", 0.01)


class Burning:
    """A counter of a device that always takes 50 W."""

    source = "a test"

    def joules(self) -> float:
        return 50.0 * time.perf_counter()


def config(text: Path) -> TrainerConfig:
    return tiny(text, log_interval=2, compile=False)


def measured(text: Path, file: Path, **arguments: Any) -> dict[str, Any]:
    assert bench(config(text), NullContext(), json_file=file, **arguments) == 0
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def test_the_figures_belong_together(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "find_energy", lambda device: Energy(Burning(), "a test"))
    monkeypatch.setattr(benchmark, "_LEAST_ENERGY_S", 0.0)
    report = measured(text, tmp_path / "r.json", steps=60)
    speed, shares, start = report["speed"], report["shares"], report["start_up"]
    assert speed["steps"] == 60
    assert 0 < speed["step_ms_p10"] <= speed["step_ms"] <= speed["step_ms_p90"] < 1000
    assert speed["tokens_per_s"] == pytest.approx(4 * 8 / speed["step_ms"] * 1000)
    assert speed["mfu"] == pytest.approx(speed["flops_per_s"] / speed["peak_flops_per_s"])
    assert speed["mfu_a100"] == pytest.approx(speed["flops_per_s"] / 312e12)
    assert 0 < speed["mfu"] < 1
    clock_by_processor = speed["step_ms"] / speed["cpu_ms"] * report["machine"]["threads"]
    assert speed["mfu_cpu"] == pytest.approx(speed["mfu"] * clock_by_processor)
    assert 0 < shares["batches"] < shares["outside_model"] < 1
    assert shares["outside_model"] == pytest.approx(shares["batches"] + shares["loop"])
    assert 0 < start["imported_s"] <= start["ready_s"] <= start["first_step_s"]
    assert report["power"]["watts"] == pytest.approx(50.0, rel=0.5)
    assert report["power"]["joules_per_token"] * 4 * 8 * 60 < 50.0 * 60
    assert report["config"] == config(text).model_dump(mode="json")
    out = capsys.readouterr().out
    assert "step:" in out
    assert "loss" not in out  # what training prints is left out


def test_without_a_power_meter_a_note_says_so(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "find_energy", lambda device: Energy(None, "nothing here tells"))
    report = measured(text, tmp_path / "r.json", steps=3)
    assert report["power"] == {"watts": None, "joules_per_token": None, "note": "nothing here tells"}
    assert "nothing here tells" in capsys.readouterr().out


def test_time_spent_on_batches_is_outside_the_model(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.data import Batches

    quick, shares_of = Batches.starts, benchmark._Parts.shares
    walls: list[float] = []

    def slow(self: Batches, first_step: int, count: int) -> Any:
        time.sleep(0.05)
        return quick(self, first_step, count)

    def noted(self: Any, wall_s: float) -> Shares:
        walls.append(wall_s)
        return shares_of(self, wall_s)

    monkeypatch.setattr(Batches, "starts", slow)
    monkeypatch.setattr(benchmark._Parts, "shares", noted)
    report = measured(text, tmp_path / "r.json", steps=10)
    # How much else a step takes depends on what else the machine does; the ten sleeps do not.
    (wall_s,) = walls
    assert report["shares"]["batches"] * wall_s > 10 * 0.05 * 0.99
    assert report["shares"]["outside_model"] > report["shares"]["batches"]


def test_what_is_compiled_meanwhile_is_waited_for(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[int] = []

    class Waiting(EagerEngine):
        @property
        def waiting(self) -> bool:  # type: ignore[override]
            return len(updates) < 37

        @property
        def compiled(self) -> bool:  # type: ignore[override]
            return not self.waiting

        def update(self, step: int) -> Any:
            updates.append(step)
            return super().update(step)

    monkeypatch.setattr("trainer.train.build_engine", lambda *arguments: Waiting(*arguments[:5]))
    report = measured(text, tmp_path / "r.json", steps=3)
    assert report["start_up"]["compiled_s"] > report["start_up"]["first_step_s"]
    assert report["machine"]["compiled"]
    assert len(updates) > 37 + 3


def test_lines_for_a_gpu() -> None:
    report = Report(
        config=tiny(Path("t")),
        machine={
            "device": "cuda",
            "device_name": "A GPU",
            "dtype": "bfloat16",
            "torch": "2",
            "compiled": True,
        },
        parameters=800_000,
        start_up=Startup(1.0, 2.0, 3.0, 9.0),
        speed=Speed(100, 0.5, 0.4, 0.6, 0.5, 1e6, 5e12, 7e14, 989.4e12, 5 / 700, 5 / 312, None),
        shares=Shares(0.25, None, None, 0.01),
        power=Power(300.0, 3e-4, "NVML"),
        gpu_memory_bytes=1 << 30,
    )
    said = "\n".join(lines(report))
    for part in (
        "A GPU, bfloat16, compiled, PyTorch 2",
        "first step made after 3.00 s, compiled from 9.00 s on",
        "0.71%: 5 TFLOP/s of 700 by matrix products (data sheet: 989.4); 1.603% of an A100",
        "25.0% of the time no kernel runs; 1.0% is between updates",
        "0.0003 J/token, 300.0 W (NVML)",
        "1,024 MiB reserved",
    ):
        assert part in said


def test_a_stopwatch_counts_nested_calls_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        now = 0.0

        def outer(self) -> str:
            self.now += 1.0
            return self.inner()

        def inner(self) -> str:
            self.now += 2.0
            return "done"

    worker, watch = Worker(), Stopwatch()
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: worker.now))
    with watch.on(worker, "outer"), watch.on(worker, "inner"):
        assert worker.outer() == "done"
        assert watch.seconds == 3.0
        worker.inner()
    assert watch.seconds == 5.0
    worker.outer()
    assert watch.seconds == 5.0


def test_overlapping_kernels_count_once() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2), (10, 12)]) == 3 + 1 + 2
    assert covered([(0, 10), (1, 2), (5, 8)]) == 10
    assert covered([]) == 0.0


def test_a_trace_of_the_benchmark(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "trace"
    measured(text, tmp_path / "r.json", steps=3, profile=folder)
    names = [e.get("name") for e in json.loads((folder / "trace.json").read_text())["traceEvents"]]
    assert names.count("aten::scaled_dot_product_attention") == TRACED_STEPS * TINY["n_layer"]
    assert "aten::mm" in (folder / "operators.txt").read_text()
    assert "aten::mm" in capsys.readouterr().out


def test_options_stand_before_or_after_the_command() -> None:
    parse = _parser().parse_args
    plain = parse(["--config", "a", "--set", "x=1"])
    assert (plain.command, plain.config, plain.set, plain.profile) == (None, Path("a"), ["x=1"], None)
    for arguments in (["--config", "a", "bench", "--steps", "3"], ["bench", "--config", "a", "--steps", "3"]):
        found = parse(arguments)
        assert (found.command, found.config, found.set, found.steps) == ("bench", Path("a"), [], 3)
    with pytest.raises(SystemExit):
        parse(["bench", "--steps", "0"])


def test_mistakes_are_told_without_pytorch() -> None:
    program = "import sys; sys.modules['torch'] = None\nfrom trainer.__main__ import main\nsys.exit(main())"
    arguments = [sys.executable, "-c", program, "bench", "--set", "n_layer=0"]
    done = subprocess.run(arguments, env=clean_env(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_USER_ERROR
    assert "n_layer" in done.stderr.splitlines()[-1]
