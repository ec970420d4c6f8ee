"""`orch nodes` and `orch drain`."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli.nodes import state_word
from orchestrator.messages import GpuView, NodeView
from tests.unit.cli.conftest import Orch
from tests.unit.cli.fake import FakeController


def box(**values: Any) -> NodeView:
    return NodeView(**{"name": "box", "pool": "gpu", "state": "ready", "cpus": 16, "gpus": 2, **values})


def gpu(index: int, foreign_gib: float = 0) -> GpuView:
    return GpuView(index=index, name="RTX", memory=24 << 30, foreign_memory=int(foreign_gib * 2**30))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "ready"),
        ({"state": "lost"}, "lost"),
        ({"state": "away", "draining": True}, "away"),
        ({"draining": True}, "draining"),
        ({"draining": True, "drained": True}, "drained"),
        ({"draining": True, "busy": "cs2 is running"}, "draining"),
        ({"excluded": "3 runs failed there"}, "excluded"),
        ({"busy": "cs2 is running"}, "in use"),
    ],
)
def test_a_word_for_every_state(values: dict[str, Any], word: str, fake: FakeController, orch: Orch) -> None:
    fake.nodes = [box(**values)]
    assert state_word(fake.nodes[0]) == word
    line = orch("nodes").out.splitlines()[1]
    assert line.split()[2] == word.split()[0]
    assert str(values.get("busy", "")) in line
    assert str(values.get("excluded", "")) in line
    assert ("it is being drained" in line) is (word == "away")


def test_gpus_show_their_memory_and_what_others_have_of_it(fake: FakeController, orch: Orch) -> None:
    fake.nodes = [box(gpu_states=[gpu(0, 1.5), gpu(1), gpu(2)]), box(name="cpu", gpus=0)]
    head, first, second = orch("nodes").out.splitlines()
    assert "GPU MEMORY (FOREIGN)" in head
    assert "24.0 GiB (1.5 GiB), 2 x 24.0 GiB (0 B)" in first
    assert "GiB (" not in second
    fake.nodes = [box()]
    assert "FOREIGN" not in orch("nodes").out


def test_a_silent_node_says_for_how_long(fake: FakeController, orch: Orch) -> None:
    fake.nodes = [box(name="a", silent_s=12), box(name="b", state="lost", silent_s=200), box(name="c")]
    _, *lines = orch("nodes").out.splitlines()
    assert ["not heard of for 3 min" in line for line in lines] == [False, True, False]
    assert "heard" not in lines[0]


def test_json_holds_the_same(fake: FakeController, orch: Orch) -> None:
    fake.nodes = [box(busy="cs2 is running", yields=True, closed="its owner uses it", gpu_states=[gpu(0, 1)])]
    (told,) = orch("nodes", "--json").json
    assert (told["busy"], told["yields"], told["gpu_states"][0]["foreign_memory"]) == (
        "cs2 is running",
        True,
        1 << 30,
    )


def test_status_shows_them_too(fake: FakeController, orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.nodes = [box(draining=True, gpu_states=[gpu(0, 1)])]
    text = orch("status").out
    assert "draining" in text
    assert "24.0 GiB (1.0 GiB)" in text


def test_drain_says_who_has_to_go(fake: FakeController, orch: Orch) -> None:
    fake.nodes = [box(runs=["demo", "night"])]
    result = orch("drain", "box")
    assert result.code == 0, result.err
    assert result.out.strip() == "box is being drained: demo, night will save and go on elsewhere"
    assert fake.requests[-1][:2] == ("POST", "/v1/nodes/box/drain")
    fake.nodes = [box()]
    assert "nothing runs there" in orch("drain", "box").out


def test_undo_uses_it_again(fake: FakeController, orch: Orch) -> None:
    fake.nodes = [box(draining=True)]
    assert orch("drain", "box", "--undo").out.strip() == "box is used again"
    assert fake.requests[-1][:2] == ("DELETE", "/v1/nodes/box/drain")
    told = orch("drain", "box", "--json").json
    assert NodeView.model_validate(told).drained


def test_an_unknown_node_names_those_there_are(fake: FakeController, orch: Orch) -> None:
    result = orch("drain", "bax")
    assert result.code == 3
    assert "no node is called bax" in result.err
    assert "the nodes there are: box" in result.err


def test_help_says_what_it_does(orch: Orch) -> None:
    text = " ".join(orch("drain", "--help").out.split())
    for part in ("saves and goes on elsewhere", "--undo", "--json"):
        assert part in text
