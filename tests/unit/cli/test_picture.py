"""How `orch top` looks: whole pictures at three sizes, checked by hand, and what they are made of."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.screen import Screen

from orchestrator.cli.picture import Picture, frame
from orchestrator.cli.sections import bar, heights, sparkline
from orchestrator.domain.states import RunState
from orchestrator.messages import Health
from orchestrator.messages_top import TopView
from tests.unit.cli import views
from tests.unit.cli.fake import NOW

GOLDEN = Path(__file__).with_name("golden")
SIZES = [(80, 24), (120, 30), (200, 50)]
EVIL = "a\x1b[2J\x1b]0;evil\x07\r\nb\x9b31m\u202ec"


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def lines(view: TopView, width: int = 80, height: int = 24, trouble: str = "") -> list[str]:
    return [line.plain for line in frame(view, width, height, NOW, trouble)]


# ---- whole pictures


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_busy_cluster(width: int, height: int) -> None:
    golden = (GOLDEN / f"top-{width}x{height}.txt").read_text().splitlines()
    assert [line.rstrip() for line in lines(views.busy(), width, height)] == golden


def test_a_cluster_with_nothing() -> None:
    shown = [line.rstrip() for line in lines(views.empty(), 80, 12)]
    assert shown == [
        "orch top   ● controller   ● Ray                                         12:00:00",
        "",
        "RUNNING 0  NODE  STEPS  LEFT  LOSS",
        "nothing executes; `orch submit SPEC` begins a run",
        "",
        "MACHINES 0  STATE  CPUS  RUNS",
        "no machines; `orch up` starts one here, `orch join` brings in another",
        "",
        "",
        "",
        "",
        "today  no energy was counted                                           q ends it",
    ]


@pytest.mark.parametrize("view", [views.busy(), views.empty()], ids=["busy", "empty"])
@pytest.mark.parametrize("width", [20, 40, 63, 79, 80, 81, 99, 149, 150, 151, 237])
@pytest.mark.parametrize("height", [2, 3, 5, 9, 16, 24, 33, 60])
def test_it_fills_any_size_exactly(view: TopView, width: int, height: int) -> None:
    shown = lines(view, width, height)
    assert len(shown) == height
    assert {cell_len(line) for line in shown} == {width}


def test_the_terminal_gets_as_many_cells_as_it_has() -> None:
    console = Console(width=80, height=24, file=StringIO(), legacy_windows=False)
    drawn = console.render_lines(Screen(Picture(views.busy(), NOW)), console.options)
    assert ["".join(segment.text for segment in line) for line in drawn] == lines(views.busy())


# ---- what is cut first


def test_what_executes_is_cut_last() -> None:
    headings = {
        height: [line.split()[0] for line in lines(views.busy(), 80, height) if line[:1].isupper()]
        for height in (24, 18, 14, 11, 8, 5)
    }
    assert headings[24] == ["RUNNING", "QUEUED", "MACHINES", "SWEEPS", "NEXT"]
    assert headings[14] == ["RUNNING", "QUEUED", "MACHINES"]
    assert headings[11] == ["RUNNING", "MACHINES"]
    assert headings[8] == ["RUNNING"]
    assert headings[5] == ["RUNNING"]


def test_what_is_cut_is_counted() -> None:
    shown = lines(
        views.busy().model_copy(update={"running": views.busy().running * 20, "running_total": 140})
    )
    at = next(i for i, line in enumerate(shown) if line.startswith("RUNNING 140"))
    end = next(i for i, line in enumerate(shown) if line.startswith("QUEUED"))
    rows = shown[at + 1 : end]
    assert len(rows) >= 7
    assert rows[-1].strip() == f"… {140 - len(rows) + 1} more"


def test_rows_are_given_up_before_sections() -> None:
    view = views.busy()
    many = view.model_copy(
        update={
            "running": view.running * 10,
            "running_total": 50,
            "nodes": view.nodes * 10,
            "sweeps": view.sweeps * 10,
            "fires": view.fires * 10,
        }
    )
    shown = [line for line in lines(many) if line[:1].isupper()]
    assert [line.split()[0] for line in shown] == ["RUNNING", "QUEUED", "MACHINES", "SWEEPS", "NEXT"]


def test_nothing_fits_nowhere() -> None:
    assert heights([], 0) == []


# ---- parts


def test_sparklines() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([1.0], 0) == ""
    assert sparkline([2.0], 10) == "▄"
    assert sparkline([2.0, 2.0, 2.0], 10) == "▄▄▄"
    assert sparkline(range(8), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(list(range(16)), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([math.nan, 1.0, math.inf, 2.0], 8) == "▁█"


def test_the_first_fall_does_not_flatten_the_rest() -> None:
    values = [100.0, *(10.0 - index for index in range(15))]
    assert sparkline(values, 16) == "████▇▇▆▅▅▄▄▃▂▂▁▁"


def test_a_curve_has_no_more_cells_than_values() -> None:
    assert len(sparkline(views.falling(60, 1.0), 24)) == 24
    assert len(sparkline(views.falling(5, 1.0), 24)) == 5


def test_bars() -> None:
    assert bar(0, 4, 4).plain == "────"
    assert bar(1, 1000, 4).plain == "╸───"
    assert bar(3, 8, 4).plain == "━╸──"
    assert bar(4, 4, 4).plain == "━━━━"
    assert bar(9, 4, 4).plain == "━━━━"
    assert bar(1, 0, 4).plain == "────"
    assert bar(1, 2, 0).plain == ""


# ---- words from elsewhere


def test_nothing_steers_the_terminal() -> None:
    view = views.busy()
    run, wait, machine, sweep, fire = (
        view.running[0],
        view.waiting[0],
        view.nodes[0],
        view.sweeps[0],
        view.fires[0],
    )
    lost = run.run.model_copy(update={"state": RunState.UNREACHABLE, "message": EVIL, "name": EVIL})
    hostile = view.model_copy(
        update={
            "running": [
                run.model_copy(update={"run": run.run.model_copy(update={"name": EVIL, "node": EVIL})}),
                run.model_copy(update={"run": lost}),
            ],
            "waiting": [
                wait.model_copy(update={"name": EVIL, "user": EVIL, "why": EVIL}),
                wait.model_copy(update={"user": "x"}),
            ],
            "nodes": [
                machine.model_copy(
                    update={
                        "node": machine.node.model_copy(
                            update={"name": EVIL, "pool": EVIL, "busy": EVIL, "runs": [EVIL], "state": EVIL}
                        )
                    }
                )
            ],
            "sweeps": [sweep.model_copy(update={"name": EVIL, "metric": EVIL, "message": EVIL})],
            "fires": [fire.model_copy(update={"name": EVIL})],
            "energy": view.energy.model_copy(update={"currency": EVIL}),
        }
    )
    for width, height in SIZES:
        shown = lines(hostile, width, height, trouble=EVIL)
        assert all(character.isprintable() for line in shown for character in line)
        assert len(shown) == height
        assert "evil" in "\n".join(shown)


def test_wide_characters_keep_the_columns_together() -> None:
    view = views.busy()
    run = view.running[0].run.model_copy(update={"name": "実験-日本語-とても長い名前-です", "node": "机"})
    wide = view.model_copy(update={"running": [view.running[0].model_copy(update={"run": run})]})
    for width, height in SIZES:
        assert {cell_len(line) for line in lines(wide, width, height)} == {width}


# ---- the head and the foot


def test_trouble_is_said_and_the_picture_is_pale() -> None:
    drawn = frame(views.busy(), 80, 24, NOW, "the controller does not answer; trying again (12 s)")
    assert "the controller does not answer; trying again (12 s)" in drawn[0].plain
    assert all(any(span.style == "dim" for span in line.spans) for line in drawn[1:-1])


@pytest.mark.parametrize(
    ("health", "told"),
    [
        ({"ray_connected": False}, "● Ray does not answer"),
        ({"mlflow_connected": False}, "● MLflow does not answer"),
        ({"mlflow_connected": True, "mlflow_pending": 3}, "● MLflow, 3 points behind"),
    ],
)
def test_health(health: dict[str, object], told: str) -> None:
    values = {"version": "1", "cluster_id": "c", "ray_connected": True, **health}
    assert told in lines(views.empty().model_copy(update={"health": Health(**values)}))[0]  # type: ignore[arg-type]


def test_a_cluster_that_goes_down_says_so() -> None:
    assert "being taken down" in lines(views.busy().model_copy(update={"draining": True}), 120)[0]


def test_what_begins_in_days_is_told_by_its_day() -> None:
    far = views.coming("yearly", 24 * 60, None)
    shown = lines(views.empty().model_copy(update={"fires": [views.coming("weekly", 70, None), far]}))
    assert "● weekly  Wed 10:00    2 d" in "\n".join(shown)
    assert "● yearly  2026-04-30  60 d" in "\n".join(shown)
