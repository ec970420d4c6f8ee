"""`orch owner`: the rules of this machine's nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.config import save_config
from orchestrator.cluster.owner import OwnerRules, load_rules
from orchestrator.settings import Home
from tests.unit.cli.conftest import Orch
from tests.unit.cluster.test_config import config


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    first = config().nodes[0]
    save_config(Home(tmp_path), config(nodes=(first, first.model_copy(update={"name": "b"}))))
    return Home(tmp_path)


def test_it_shows_what_holds(orch: Orch, home: Home) -> None:
    lines = orch("owner").out.splitlines()
    assert [line for line in lines if line in ("a", "b")] == ["a", "b"]
    text = "\n".join(lines)
    assert "others keep every GPU busier than 30% for 30 s" in text
    assert "what runs saves and goes, nothing new starts, until it has been quiet for 2 min" in text
    assert text.count("off") == 6


def test_options_change_one_rule_each(orch: Orch, home: Home) -> None:
    assert orch("owner", "--node", "a", "--process", "cs2", "--process", "gamescope").code == 0
    assert orch("owner", "--gpu", "50%", "--gpu-for", "1m", "--login", "10m", "--battery").code == 0
    result = orch("owner", "--node", "a", "--no-yields", "--quiet", "30s", "--json")
    expected = OwnerRules(
        processes=("cs2", "gamescope"), gpu=0.5, gpu_for=60, login=600, battery=True, yields=False, quiet=30
    )
    assert OwnerRules.model_validate(result.json["nodes"]["a"]) == expected
    assert load_rules(home.node("a")) == expected
    assert load_rules(home.node("b")).processes == ()
    assert load_rules(home.node("b")).login == 600
    assert orch("owner", "--process", "off", "--gpu", "off", "--login", "off", "--no-battery").code == 0
    now = load_rules(home.node("a"))
    assert (now.processes, now.gpu, now.login, now.battery, now.quiet) == ((), None, None, False, 30)
    assert "nothing new starts, until it has been quiet for 30 s" in orch("owner", "--node", "a").out


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--gpu", "much"), 2, "30%"),
        (("--gpu", "30"), 7, "--gpu"),
        (("--quiet", "soon"), 7, "--quiet"),
        (("--node", "c"), 3, "It has a, b"),
    ],
)
def test_mistakes_are_named(orch: Orch, home: Home, arguments: tuple[str, ...], code: int, word: str) -> None:
    result = orch("owner", *arguments)
    assert result.code == code
    assert word in result.err


def test_a_machine_without_nodes_says_what_to_do(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "empty"))
    result = orch("owner", "--battery")
    assert result.code == 7
    assert "orch up" in result.err
