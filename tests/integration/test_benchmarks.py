"""What the benchmark scripts compute from their measurements, and the pacing of a program under test."""

from __future__ import annotations

import json
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import report
from benchmarks.cases import CASES, GPU, LAPTOP, hyperparameters
from benchmarks.curves import follow
from benchmarks.handover import relative_distances
from benchmarks.nanogpt import arguments
from benchmarks.plots import handover_plot, parity_plot
from benchmarks.programs import GATE, gated, seeded, whole_loss
from benchmarks.serving import Pacer, Slice
from benchmarks.svg import HEIGHT, WIDTH, Line, Plot, render, ticks
from benchmarks.to_loss import reached_row, seconds, until
from benchmarks.trainer_parity import NANOGPT, OURS, TF32, Plan, Run, loss_rows, places, spread_row, train_all
from benchmarks.trainer_vs_nanogpt import case_rows, parse_setting, sized
from benchmarks.workers import Bench, Worker, WorkerError

SMALL = next(case for case in CASES if case.name == "cpu-small-fp32")
TRAIN_PY = """
import torch
torch.manual_seed(1337 + 0)
device_type, device, block_size, data_dir = "cpu", "cpu", 2, "."
dtype, compile, config, iter_num = "float32", False, {}, 0
print("printed by the program")
while True:
    iter_num += 1
    if iter_num > 5:
        raise RuntimeError("the sixth")
open("ended", "w").close()
"""


def test_a_gated_loop_makes_the_iterations_that_it_is_allowed() -> None:
    names: dict[str, Any] = {GATE: iter([True, True, False]).__next__}
    exec(compile(gated("n = 0\nwhile True:\n    n += 1\ndone = n"), "train.py", "exec"), names)
    assert names["done"] == 2


@pytest.mark.parametrize("source", ["n = 0", "while True:\n    break\nwhile True:\n    break"])
def test_a_script_without_one_training_loop_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="one training loop"):
        gated(source)


def test_the_seed_is_replaced_where_it_is_written() -> None:
    assert seeded("torch.manual_seed(1337 + offset)", 5) == "torch.manual_seed(5 + offset)"
    with pytest.raises(ValueError, match="manual_seed"):
        seeded("torch.manual_seed(42)", 5)


def test_a_program_makes_slices_answers_and_ends_with_the_pipe(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN_PY)
    with _worker(tmp_path) as worker:
        assert worker.steps(2, 60).steps == 2
        assert worker.steps(1, 60).steps == 1
        assert worker.facts()["iter_num"] == 3
    assert (tmp_path / "ended").exists()
    assert "printed by the program" in (tmp_path / "log").read_text()


def test_a_program_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN_PY)
    with _worker(tmp_path) as worker, pytest.raises(WorkerError, match="the sixth"):
        worker.steps(6, 60)


def _worker(folder: Path) -> Worker:
    spec = {"program": "nanogpt", "folder": str(folder), "arguments": [], "seed": 1, "tf32": True}
    return Worker(spec, folder / "log", {})


class _Channel:
    """Gives commands and keeps the answers."""

    def __init__(self, commands: Iterable[dict[str, Any]]) -> None:
        self._commands = iter(commands)
        self.answers: list[Any] = []

    def receive(self) -> dict[str, Any] | None:
        return next(self._commands, None)

    def send(self, answer: object) -> None:
        self.answers.append(answer)


def test_the_device_is_waited_for_before_a_slice_is_timed() -> None:
    channel = _Channel([{"do": "twice", "n": 3}, {"do": "steps", "n": 4}])
    order: list[str] = []
    handlers = {"twice": lambda n: 2 * n}
    pacer = Pacer(channel, lambda: order.append("synchronised"), handlers)  # type: ignore[arg-type]
    assert pacer.next_slice() == 4
    assert channel.answers == [6]
    assert order == []
    assert pacer.next_slice() == 0
    assert order == ["synchronised"]
    assert channel.answers[1]["steps"] == 4


class _Bigram(nn.Module):
    """The smallest model that has a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.dropout(self.table(tokens))
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_the_whole_loss_is_the_mean_over_consecutive_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.programs.EVALUATION_TOKENS", 8)  # two sequences, then the third
    model = _Bigram().train()
    tokens = torch.randint(5, (15,), generator=torch.Generator().manual_seed(1))
    expected = nn.functional.cross_entropy(model.table(tokens[:12]), tokens[1:13]).item()
    assert whole_loss(model, tokens, block_size=4) == pytest.approx(expected, rel=1e-6)
    assert model.training


class _Stepper:
    """A worker whose loss is 100 - its step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def steps(self, count: int) -> Slice:
        self.at += count
        return Slice(count, count * 0.5, 0.0)

    def val(self) -> float:
        return 100.0 - self.at


def test_a_curve_is_measured_at_every_interval_and_at_the_end() -> None:
    curve, train_s = follow(_Stepper(20), 20, 45, 10)  # type: ignore[arg-type]
    assert curve == [(30, 70.0), (40, 60.0), (45, 55.0)]
    assert train_s == 12.5


def test_what_the_first_slice_takes_longer_is_left_out() -> None:
    slices = [Slice(20, 60.0, 90.0), Slice(50, 1.0, 2.0), Slice(50, 1.0, 3.0)]
    assert seconds(slices, "wall_s", 120) == pytest.approx(2.4)
    assert seconds(slices, "cpu_s", 120) == pytest.approx(6.0)


def test_a_run_ends_where_the_loss_is_first_reached() -> None:
    found = until(_Stepper(0), 80, "wall_s", 65.0)  # type: ignore[arg-type]
    assert found["curve"][0] == (26, 74.0)
    assert (found["reached_step"], found["seconds"]) == (36, 18.0)
    missed = until(_Stepper(0), 80, "wall_s", 19.0)  # type: ignore[arg-type]
    assert (missed["reached_step"], missed["seconds"]) == (None, None)
    assert missed["curve"][-1] == (80, 20.0)


def test_seeds_that_miss_the_loss_count_as_slowest() -> None:
    runs = [{"seconds": s} for s in (3.0, None, 1.0, 2.0, None)]
    found = reached_row("time", runs, 40.0, "nanoGPT", 10.0)
    assert (found.value, found.met) == (3.0, True)
    assert found.note.startswith("2 of 5")
    missed = reached_row("time", [{"seconds": None}, {"seconds": 1.0}, {"seconds": None}], 40.0, "", 10.0)
    assert (missed.value, missed.met) == (None, None)


def test_speed_ups_are_medians_of_pairs() -> None:
    ours = [Slice(10, 1.0, 1.0), Slice(10, 2.0, 1.0), Slice(10, 1.0, 1.0)]
    theirs = [Slice(10, 2.0, 4.0), Slice(10, 4.0, 4.0), Slice(10, 2.0, 4.0)]
    facts = {"flops_per_step": 1e9, "gemm_flops": 2e10, "dtype": "float32", "compiled": True, "threads": 2}
    rows = {r.name: r for r in case_rows(SMALL, {"ours": ours, "eager": theirs}, facts)}
    assert rows["cpu-small-fp32: speed-up over eager"].value == 2.0
    assert rows["cpu-small-fp32: speed-up over eager"].met
    assert rows["cpu-small-fp32: time per step"].ratio == 0.5
    assert rows["cpu-small-fp32: processor time per step"].ratio == 0.25
    assert rows["cpu-small-fp32: share of the GEMM peak"].value == pytest.approx(50.0)
    assert rows["cpu-small-fp32: share of the GEMM peak, by processor time"].value == pytest.approx(100.0)


def test_a_quick_case_is_shorter_and_has_the_eager_peer_only() -> None:
    quick = sized(SMALL, quick=True, rounds=2)
    assert (quick.rounds, quick.steps, list(quick.goals)) == (2, SMALL.quick["steps"], ["eager"])
    assert sized(SMALL, quick=False, rounds=None) == SMALL


def test_nanogpt_gets_our_hyperparameters() -> None:
    given = arguments(hyperparameters(GPU), device="cuda", dtype="bfloat16", compiled=True)
    assert {"--n_layer=6", "--dropout=0.2", "--lr_decay_iters=5000", "--compile=True"} <= set(given)
    laptop = arguments(hyperparameters(LAPTOP), device="cpu", dtype="float32", compiled=False)
    assert {"--block_size=64", "--batch_size=12", "--warmup_iters=100", "--min_lr=0.0001"} <= set(laptop)


def test_settings_are_read_as_yaml() -> None:
    assert parse_setting("compile=false") == ("compile", False)
    with pytest.raises(ValueError, match="key=value"):
        parse_setting("compile")


@pytest.mark.parametrize(("ours", "met"), [([1.91, 1.92, 1.90], True), ([1.95, 1.96, 1.94], False)])
def test_parity_means_a_difference_within_the_seed_spread(ours: list[float], met: bool) -> None:
    assert spread_row("val", ours, [1.89, 1.90, 1.91]).met is met


def test_one_seed_proves_nothing() -> None:
    assert spread_row("val", [1.9], [1.9]).met is None


def test_on_a_cpu_bf16_is_compared_with_nanogpts_fp32() -> None:
    plan = Plan("laptop", "cpu", LAPTOP, ["float32", "bfloat16"], [1, 2], 250, False)
    assert ("nanogpt", "bfloat16", 1) not in plan.runs()
    runs = [Run("ours", "bfloat16", s, [(250, 2.0), (500, 2.1)], 1.0) for s in (1, 2)]
    runs += [Run("nanogpt", "float32", s, [(250, 2.0), (500, 2.0 + s)], 1.0) for s in (1, 2)]
    rows = {r.name: r for r in loss_rows(plan, runs)}
    assert rows["laptop, bfloat16: final val loss, whole split"].peer_value == 3.5
    assert rows["laptop, bfloat16: best val loss, whole split"].value == 2.0
    assert rows["laptop, float32: final val loss, whole split"].value is None


def test_a_handover_is_judged_in_units_of_the_seeds_spread() -> None:
    seeds = [[(600, 1.0), (700, 2.0)], [(600, 1.2), (700, 2.1)], [(600, 1.4), (700, 2.2)]]
    assert relative_distances([(600, 1.6), (700, 2.1)], seeds) == pytest.approx([1.0, 0.0])


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert ticks(0, 5000) == [0, 1000, 2000, 3000, 4000, 5000]
    found = ticks(1.47, 1.93)
    assert found[0] <= 1.47
    assert found[-1] >= 1.93
    assert len(found) <= 8
    assert ticks(2.0, 2.0)[0] <= 2.0


def test_a_plot_is_xml_and_its_curves_lie_on_the_paper() -> None:
    plot = Plot("a < b", "step", "nats", [Line("one", [(0, 1.0), (10, 3.0), (20, 2.0)], "#123456")], top=3.0)
    root = ET.fromstring(render(plot))
    places = [
        tuple(map(float, place.split(",")))
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
        if line.get("stroke") == "#123456"
        for place in (line.get("points") or "").split()
    ]
    assert len(places) == 5  # the curve, and its sample in the legend
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert places[1][1] < places[2][1] < places[0][1]  # the larger, the higher
    with pytest.raises(ValueError, match="no points"):
        render(Plot("empty", "step", "nats", []))


@pytest.mark.parametrize(
    ("ys", "third"), [([3, 2, 1], 2), ([1, 2, 3], 0), ([3, 1, 3], 1)], ids=["falls", "rises", "both"]
)
def test_a_legend_stands_where_the_curve_is_not(ys: list[float], third: int) -> None:
    curve = [
        (x / 10, ys[x // 10] + (ys[min(x // 10 + 1, 2)] - ys[x // 10]) * (x % 10) / 10) for x in range(21)
    ]
    lines = [Line(f"one of six runs, number {n}", curve, "#123456") for n in range(6)]
    root = ET.fromstring(render(Plot("a", "step", "nats", lines)))
    texts = root.iter("{http://www.w3.org/2000/svg}text")
    begins = {float(text.get("x", "")) for text in texts if "one of six" in (text.text or "")}
    assert [int(x * 3 / WIDTH) for x in begins] == [third]


def test_plots_show_medians_and_ranges_of_the_runs() -> None:
    runs = [
        {
            "program": "ours",
            "dtype": "float32",
            "seed": s,
            "curve": [[250, 2.0 + s], [500, 1.0 + s]],
            "error": "",
        }
        for s in (0, 1, 5)
    ]
    broken = {"program": "nanogpt", "dtype": "float32", "seed": 1, "curve": [], "error": "gone"}
    plot = parity_plot([{"configuration": "laptop", "runs": [*runs, broken]}])
    assert [line.points for line in plot.lines] == [[(250, 3.0), (500, 2.0)]]
    assert plot.bands[0].high == [(250, 7.0), (500, 6.0)]


def test_a_handover_plot_goes_on_where_the_cpu_stopped() -> None:
    part = {"before": [[500, 2.0]], "after": [[600, 1.9]], "alone": [{"seed": 1, "curve": [[600, 1.8]]}]}
    plot = handover_plot(
        {"second": "cuda", "switch": 500, "parts": {"float32": part, "bfloat16": {"error": "x"}}}
    )
    assert plot.lines[1].points == [(500, 2.0), (600, 1.9)]
    assert len(plot.bands) == 1


def test_results_are_json_with_the_machine(tmp_path: Path) -> None:
    file = tmp_path / "results" / "r.json"
    report.report([report.unmeasured("bf16", "no hardware"), report.row("a", [1.0, 3.0, 2.0], "ms")], file)
    content = json.loads(file.read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert [r["value"] for r in content["rows"]] == [None, 2.0]
    assert content["rows"][1]["spread"] == 1.0


def test_runs_are_spread_over_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, tmp_path, 1, polite_peer=False)
    assert [place.gpu for place in places(bench, 2, None)] == [None, None]
    benches = places(bench, 2, 3)
    assert [place.gpu for place in benches] == [0, 1, 2, 0, 1, 2]
    busy: list[int | None] = []
    most: list[int] = []
    together = threading.Barrier(3)

    def train(place: Bench, plan: Plan, program: str, dtype: str, seed: int) -> Run:
        busy.append(place.gpu)
        most.append(busy.count(place.gpu))
        together.wait(20)
        busy.remove(place.gpu)
        return Run(program, dtype, seed, [(1, 1.0)], 0.0)

    monkeypatch.setattr("benchmarks.trainer_parity.train", train)
    plan = Plan("gpu", "cuda", {}, ["float32"], list(range(12)), 1, compiled_peer=True)
    kept: list[Run] = []
    train_all(benches[:3], plan, plan.runs(), kept.append)
    assert sorted((run.program, run.seed) for run in kept) == sorted((p, seed) for p, _, seed in plan.runs())
    assert set(most) == {1}


def test_nanogpts_own_fp32_on_a_gpu_is_shown_without_a_goal() -> None:
    plan = Plan("gpu", "cuda", {}, ["float32"], [1, 2], 1, compiled_peer=True, tf32=True)
    assert [run[:2] for run in plan.runs()][:3] == [(OURS, "float32"), (NANOGPT, "float32"), (NANOGPT, TF32)]
    values = {(OURS, "float32"): 1.0, (NANOGPT, "float32"): 1.1, (NANOGPT, TF32): 1.2}
    runs = [Run(p, d, seed, [(5, values[p, d] + seed)], 0.0) for p, d, seed in plan.runs()]
    final, best, beside, _ = loss_rows(plan, runs)
    assert (final.peer_value, final.met, best.met) == (pytest.approx(2.6), True, True)
    assert (beside.peer_value, beside.met, beside.goal) == (pytest.approx(2.7), None, "")
