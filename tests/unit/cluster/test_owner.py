"""When an owner needs his machine: the judgement over time, and the file of rules."""

from pathlib import Path

import pytest

from orchestrator.cluster.config import save_config
from orchestrator.cluster.owner import FILE, OwnerRules, OwnerWatch, Seen, change_rules, load_rules
from orchestrator.errors import NotFoundError, SetupError
from orchestrator.settings import Home
from tests.unit.cluster.test_config import config

RULES = OwnerRules(processes=("cs2",), login=600, battery=True, gpu=0.3, gpu_for=30, quiet=120)
NOTHING = Seen()


def over_time(rules: OwnerRules, *looks: tuple[float, Seen]) -> list[str]:
    watch = OwnerWatch()
    return [watch.judge(rules, seen, at) for at, seen in looks]


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (Seen(processes=("cs2",)), "cs2 is running"),
        (Seen(people=("ada",)), "ada is at work there"),
        (Seen(battery=True), "it is on battery"),
        (Seen(processes=("cs2",), battery=True), "cs2 is running, it is on battery"),
        (NOTHING, ""),
    ],
)
def test_a_sign_makes_it_busy_at_once(seen: Seen, text: str) -> None:
    assert over_time(RULES, (0, seen)) == [text]


def test_only_rules_that_hold_count() -> None:
    everything = Seen(gpu_use=(1.0,), people=("ada",), battery=True)
    defaults = OwnerRules()
    assert over_time(defaults, (0, everything), (29, everything)) == ["", ""]
    assert over_time(defaults, (0, everything), (30, everything))[1] == "other programs keep its GPU busy"
    off = OwnerRules(gpu=None)
    assert over_time(off, (0, everything), (100, everything)) == ["", ""]


def test_a_gpu_has_to_be_busy_without_a_pause() -> None:
    busy, calm = Seen(gpu_use=(0.9,)), Seen(gpu_use=(0.2,))
    looks = [(0, busy), (29, busy), (30, calm), (31, busy), (60, busy), (61, busy)]
    assert [bool(text) for text in over_time(RULES, *looks)] == [False] * 5 + [True]


def test_a_node_with_a_free_gpu_is_free() -> None:
    half, full = Seen(gpu_use=(0.9, 0.0)), Seen(gpu_use=(0.9, 0.5))
    assert over_time(RULES, (0, half), (100, half)) == ["", ""]
    assert over_time(RULES, (0, full), (100, full))[1]


def test_it_stays_busy_until_it_has_been_quiet() -> None:
    game = Seen(processes=("cs2",))
    texts = over_time(
        RULES, (0, game), (5, NOTHING), (100, game), (105, NOTHING), (219, NOTHING), (221, NOTHING)
    )
    assert texts == [
        "cs2 is running",
        "cs2 was running a moment ago",
        "cs2 is running",
        "cs2 was running a moment ago",
        "cs2 was running a moment ago",
        "",
    ]


def test_a_gpu_that_is_busy_now_and_then_stays_busy() -> None:
    busy, calm = Seen(gpu_use=(0.9,)), Seen(gpu_use=(0.0,))
    texts = over_time(
        RULES, (0, busy), (30, busy), (100, calm), (140, busy), (145, calm), (250, calm), (261, calm)
    )
    assert [bool(text) for text in texts] == [False, True, True, True, True, True, False]


def test_one_reason_after_another_never_flaps() -> None:
    """Signs that come and go every few seconds are one long use."""
    looks = [(at, Seen(battery=at % 3 == 0)) for at in range(0, 600, 5)]
    assert all(over_time(RULES, *looks))


def test_a_night_of_sleep_is_quiet() -> None:
    assert over_time(RULES, (0, Seen(battery=True)), (8 * 3600, NOTHING))[1] == ""


# ------------------------------------------------------------------ the file


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    first = config().nodes[0]
    save_config(home, config(nodes=(first, first.model_copy(update={"name": "b"}))))
    return home


def test_rules_are_changed_one_by_one_and_kept(home: Home) -> None:
    assert change_rules(home, None, {}) == {"a": OwnerRules(), "b": OwnerRules()}
    assert not (home.node("a") / FILE).exists(), "looking writes nothing"
    change_rules(home, "a", {"processes": ["cs2"], "login": "10m"})
    assert change_rules(home, "a", {"quiet": "30s"})["a"] == OwnerRules(
        processes=("cs2",), login=600, quiet=30
    )
    assert load_rules(home.node("a")).login == 600
    assert load_rules(home.node("b")) == OwnerRules()
    assert change_rules(home, None, {"login": None, "gpu": None})["a"].login is None


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"gpu": 30.0}, "--gpu"),
        ({"gpu_for": "soon"}, "--gpu-for"),
        ({"processes": ["/usr/games/cs2"]}, "--process"),
        ({"processes": [""]}, "--process"),
        ({"quiet": "0s"}, "--quiet"),
    ],
)
def test_a_wrong_value_names_its_option_and_changes_nothing(
    home: Home, changes: dict[str, object], option: str
) -> None:
    with pytest.raises(SetupError, match=rf"^{option}: "):
        change_rules(home, None, {"battery": True, **changes})
    assert not (home.node("a") / FILE).exists()


def test_other_nodes_and_machines_without_nodes_are_told_so(home: Home, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="called c") as caught:
        change_rules(home, "c", {})
    assert "a, b" in (caught.value.remedy or "")
    with pytest.raises(SetupError, match="no node"):
        change_rules(Home(tmp_path / "other"), None, {})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"games": ["cs2"]}')
    with pytest.raises(SetupError, match=r"owner\.json.*games"):
        load_rules(tmp_path)
