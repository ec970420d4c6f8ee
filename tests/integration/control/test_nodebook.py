"""What nodes say of themselves and what is ordered of them, as the controller keeps and merges it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.control.fleet import Fleet, FleetWatcher
from orchestrator.control.nodebook import FRESH_S, LATE_S, Drains, NodeBook
from orchestrator.errors import SetupError, UnavailableError
from orchestrator.messages import GpuView
from orchestrator.messages_agent import NodeNote
from tests.integration.control.conftest import PaperGateway
from tests.unit.records import NOW, node

GIB = 2**30


class Hands:
    """A clock that tests move. Awake time and time since boot differ once the machine was suspended."""

    def __init__(self) -> None:
        self.awake, self.boot = 1000.0, 5000.0

    def now(self):  # type: ignore[no-untyped-def]
        return NOW + timedelta(seconds=self.boot)

    def monotonic(self) -> float:
        return self.awake

    def boottime(self) -> float:
        return self.boot

    def sleep(self, seconds: float) -> None:
        self.awake += seconds
        self.boot += seconds


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def book(tmp_path: Path, clock: Hands) -> NodeBook:
    return NodeBook(Drains(tmp_path / "draining.json", clock), clock)


def gpu(foreign: int = 0, use: float = 0.0) -> GpuView:
    return GpuView(index=0, name="RTX", memory=12 * GIB, foreign_memory=foreign, foreign_use=use)


def test_a_report_counts_while_it_is_fresh(book: NodeBook, clock: Hands) -> None:
    assert book.told(node()) == node()
    book.take("laptop", NodeNote(gpus=[gpu(GIB)], busy="cs2 is running", yields=True))
    told = book.told(node())
    assert (told.report.busy, told.report.yields) == ("cs2 is running", True)
    assert told.report.gpus[0].foreign_memory == GIB
    assert told.closed == "its owner uses it: cs2 is running"
    assert book.told(node("gpu")).closed == ""
    clock.sleep(FRESH_S - 1)
    assert book.told(node()).report.busy
    assert (book.silent_s("laptop"), book.silent_s("gpu")) == (FRESH_S - 1, None)
    clock.sleep(2)
    assert book.told(node()) == node()


def test_a_report_is_old_after_the_controller_was_suspended(book: NodeBook, clock: Hands) -> None:
    book.take("laptop", NodeNote(busy="cs2 is running"))
    clock.boot += 3600
    assert book.told(node()).report.busy == ""


def test_the_newest_report_counts(book: NodeBook) -> None:
    book.take("laptop", NodeNote(busy="cs2 is running"))
    book.take("laptop", NodeNote())
    assert book.told(node()).closed == ""


def test_only_the_machine_itself_can_say_that_an_agent_is_gone(book: NodeBook, clock: Hands) -> None:
    def misses(silent_s: float, attempt: str = "run1-a1", boot: str = "boot-1") -> bool:
        return book.misses("laptop", attempt, silent_s, boot)

    assert not misses(1000.0), "it has said nothing"
    book.take("laptop", NodeNote())
    assert not misses(1000.0), "it did not speak of agents"
    book.take("laptop", NodeNote(agents=["run1-a1", "run2-a1"], boot_id="boot-1"))
    assert not misses(1000.0)
    assert misses(1000.0, "run1-a2")
    book.take("laptop", NodeNote(agents=[], boot_id="boot-1"))
    clock.sleep(1)
    assert misses(1000.0)
    assert misses(1 + LATE_S + 0.1)
    assert not misses(1 + LATE_S), "it may have been written before the agent began"
    assert not misses(1000.0, boot="boot-2"), "another machine of that name"
    assert not misses(1000.0, boot=""), "nobody knows which machine the agent was on"
    assert not book.misses("gpu", "run1-a1", 1000.0, "boot-1")


def test_drains_outlive_the_controller(tmp_path: Path, clock: Hands) -> None:
    file = tmp_path / "draining.json"
    drains = Drains(file, clock)
    drains.add("gpu")
    drains.add("laptop")
    drains.add("laptop")
    drains.remove("gpu")
    drains.remove("nobody")
    again = NodeBook(Drains(file, clock), clock)
    assert again.drains.names() == ["laptop"]
    assert again.told(node()).closed == "it is being drained"
    assert again.told(node("gpu")).closed == ""
    again.drains.remove("laptop")
    assert Drains(file, clock).names() == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"draining": ["gpu"]}'])
def test_a_damaged_file_is_named(tmp_path: Path, clock: Hands, text: str) -> None:
    file = tmp_path / "draining.json"
    file.write_text(text)
    with pytest.raises(SetupError, match=r"draining\.json") as caught:
        Drains(file, clock)
    assert "orch drain" in (caught.value.remedy or "")


class Pictures:
    """A watcher that is asked by hand, and how often it woke the loop."""

    def __init__(self, book: NodeBook) -> None:
        self.gateway = PaperGateway()
        self.woken = 0
        self.watcher = FleetWatcher(self.gateway, self._wake, book.told)
        self.look()
        self.woken = 0

    def _wake(self) -> None:
        self.woken += 1

    def look(self) -> None:
        """One round of its thread."""
        self.watcher._ray = self.watcher._ask()
        self.watcher.refresh()


def closed(fleet: Fleet) -> dict[str, str]:
    return {found.name: found.closed for found in fleet.nodes}


def test_a_report_wakes_the_loop_where_it_changes_what_may_start(book: NodeBook) -> None:
    seen = Pictures(book)

    def say(note: NodeNote) -> int:
        before = seen.woken
        book.take("gpu", note)
        seen.watcher.refresh()
        return seen.woken - before

    assert say(NodeNote(gpus=[gpu()])) == 1
    assert say(NodeNote(gpus=[gpu()])) == 0
    assert say(NodeNote(gpus=[gpu(use=0.4)])) == 0, "how busy a GPU is changes every second"
    assert say(NodeNote(gpus=[gpu(GIB)])) == 1
    assert say(NodeNote(busy="cs2 is running")) == 1
    assert say(NodeNote(busy="cs2 is running", yields=True)) == 1
    assert say(NodeNote()) == 1


def test_the_picture_holds_what_ray_and_the_nodes_say(book: NodeBook, clock: Hands) -> None:
    seen = Pictures(book)
    book.take("gpu", NodeNote(busy="cs2 is running"))
    book.drains.add("laptop")
    seen.look()
    assert closed(seen.watcher.fleet) == {
        "laptop": "it is being drained",
        "gpu": "its owner uses it: cs2 is running",
    }
    clock.sleep(FRESH_S + 1)
    seen.look()
    assert closed(seen.watcher.fleet)["gpu"] == "", "nobody reports any more"
    seen.gateway.nodes_error = UnavailableError("no Ray")
    book.drains.remove("laptop")
    seen.look()
    fleet = seen.watcher.fleet
    assert not fleet.connected
    assert closed(fleet) == {"laptop": "", "gpu": ""}, "what is known goes on"
