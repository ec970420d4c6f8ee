"""Runs side by side."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from orchestrator.analysis.compare import Comparison, Row, Value, compare, effective_settings
from orchestrator.domain.states import Phase, Reason
from orchestrator.messages import RunDetail
from orchestrator.spec import CommandProgram, RunSpec
from tests.unit.cli.fake import NOW, attempt, detail, handed_over


def rows(found: list[Row]) -> dict[str, list[Value]]:
    return {row.key: row.values for row in found}


def on(node: str, run: str, steps: int, **trainer: Any) -> RunDetail:
    """A run with a single attempt on this node."""
    only = attempt(
        node=node,
        phase=Phase.ENDED,
        reason=Reason.COMPLETED,
        last_step=steps,
        started_at=NOW - timedelta(seconds=steps / 10),
        ended_at=NOW,
    )
    base = detail(run, run, trainer=trainer, step=steps, target_steps=steps)
    return base.model_copy(update={"attempts": [only]})


def test_the_question_that_began_it_all() -> None:
    """Laptop against gaming PC: not only steps and precision differ, the models do."""
    laptop = on("laptop", "laptop", 2000)
    pc = on(
        "gpu",
        "pc",
        5000,
        max_steps=5000,
        n_layer=6,
        n_head=6,
        n_embd=384,
        block_size=256,
        batch_size=64,
        dropout=0.2,
    )
    found = compare([laptop, pc])
    settings = rows(found.settings)
    assert settings["trainer.n_layer"] == [4, 6]
    assert settings["trainer.n_embd"] == [128, 384]
    assert settings["trainer.dropout"] == [0.0, 0.2]
    assert settings["trainer.max_steps"] == [2000, 5000]
    assert settings["trainer.dtype"] == ["float32", "bfloat16"]
    assert settings["placement.gpus"] == [0, 1]
    assert "trainer.learning_rate" not in settings
    results = {row.key: row for row in found.results}
    assert results["tokens trained"].values == [2000 * 12 * 64, 5000 * 64 * 256]
    assert results["training time (s)"].values == [200.0, 500.0]
    assert results["steps"].difference == 3000
    assert results["steps"].ratio == 2.5


def test_a_run_that_moved_shows_both_stretches() -> None:
    settings = effective_settings(handed_over())
    assert settings["trainer.dtype"] == ["float32", "bfloat16"]
    assert settings["placement.pool"] == ["laptop", "gpu"]
    assert settings["trainer.n_layer"] == 4
    results = rows(compare([handed_over(), handed_over("bbbb2345")]).results)
    assert results["nodes"] == [["laptop", "gpu"]] * 2
    assert results["tokens trained"] == [2000 * 12 * 64] * 2
    assert results["training time (s)"] == [140.0, 140.0]


def test_equal_runs_differ_in_nothing() -> None:
    found = compare([detail(), detail("bbbb2345", "other")])
    assert found.settings == []
    assert found.names == ["demo", "other"]


def test_metrics_come_in_order_and_without_the_machines() -> None:
    left = detail().model_copy(
        update={"metrics": {"zeta": 1.0, "val/loss": 2.0, "system/cpu": 3.0, "train/loss": 1.5}}
    )
    right = detail("bbbb2345").model_copy(update={"metrics": {"val/loss": 1.5, "train/loss": 1.0}})
    found = compare([left, right]).metrics
    assert [row.key for row in found] == ["train/loss", "val/loss", "zeta"]
    assert found[1] == Row(key="val/loss", values=[2.0, 1.5], difference=-0.5, ratio=0.75)
    assert found[2] == Row(key="zeta", values=[1.0, None])


def test_more_than_two_runs_have_a_range() -> None:
    found = compare([on("laptop", f"run{steps}", steps) for steps in (500, 2000, 1000)])
    steps = next(row for row in found.results if row.key == "steps")
    assert (steps.difference, steps.ratio) == (1500, 4)


def test_truth_values_are_not_numbers() -> None:
    found = compare([on("laptop", "a", 5, bias=True), on("laptop", "b", 5)])
    assert [row for row in found.settings if row.key == "trainer.bias"] == [
        Row(key="trainer.bias", values=[True, False])
    ]


def test_no_ratio_where_a_value_is_not_above_zero() -> None:
    found = compare([on("laptop", "a", 5), on("laptop", "b", 5, dropout=0.5)])
    assert found.settings == [Row(key="trainer.dropout", values=[0.0, 0.5], difference=0.5)]


def test_a_command_beside_a_trainer() -> None:
    program = RunSpec(name="any", command=CommandProgram(argv=["python", "train.py"], env={"A": "1"}))
    other = detail("bbbb2345").model_copy(update={"spec": program, "attempts": []})
    found = compare([detail(), other])
    settings = rows(found.settings)
    assert settings["command.argv"] == [None, "python train.py"]
    assert settings["command.env.A"] == [None, "1"]
    assert settings["trainer.n_layer"] == [4, None]
    assert rows(found.results)["tokens trained"][0] == 500 * 12 * 64


def test_a_run_without_attempts_has_its_first_variant() -> None:
    waiting = detail().model_copy(update={"attempts": []})
    assert effective_settings(waiting)["placement.pool"] == "laptop"
    assert rows(compare([waiting, waiting]).results)["nodes"] == [None, None]


def test_an_attempt_in_a_pool_that_the_spec_does_not_name() -> None:
    elsewhere = detail().model_copy(update={"attempts": [attempt(pool="attic")]})
    assert effective_settings(elsewhere)["placement.pool"] == "laptop"


def test_a_comparison_travels_as_json() -> None:
    found = compare([handed_over(), on("gpu", "pc", 3)], {"compare": "http://h/#/c"})
    assert Comparison.model_validate_json(found.model_dump_json()) == found
