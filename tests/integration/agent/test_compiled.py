"""Compiled steps between a node's cache and the store."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.agent import compiled as module
from orchestrator.agent.packing import ENTRY
from orchestrator.errors import SetupError, StoreFullError, StoreUnavailableError
from orchestrator.settings import flag
from orchestrator.store import compiled as stored
from tests.integration.agent.steps import FILES, KEY, Make, Node, archive, good, member, note_of, put
from tests.support import wait_until
from tests.unit.store.memory_store import MemoryStore


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes nodes whose threads run, with a store in memory."""
    monkeypatch.setattr(module, "_EVERY_S", 0.01)
    nodes: list[Node] = []

    def one(store: MemoryStore | None = None) -> Node:
        node = Node(tmp_path / f"node{len(nodes)}", store or MemoryStore())
        nodes.append(node)
        node.steps.start()
        return node

    yield one
    for node in nodes:
        node.busy = False
        node.end()


# ---------------------------------------------------------------------- sharing


def test_a_step_goes_from_one_node_to_another(make: Make) -> None:
    files = {"inductor/aa/kernel.so": b"\x7fELF" * 999, "inductor/empty": b"", "gradient.pt2": b"g"}
    first = make()
    first.ask()
    assert first.events == []
    first.compile(files)
    wait_until(lambda: first.events, 20)
    assert first.events == ["compiled step put into the store (0.0 MB)"]
    assert note_of(first.store).node == "n1"
    second = make(first.store)
    second.ask()
    assert second.events == ["compiled step taken from the store (0.0 MB)"]
    assert second.kept == files
    assert first.rest == second.rest == set()


def test_a_step_that_was_here_before_is_stored_too(make: Make) -> None:
    node = make()
    node.compile()
    node.ask()
    node.end()
    assert node.events == ["compiled step put into the store (0.0 MB)"]
    assert len(node.store.objects) == 2


def test_what_both_have_is_not_sent(make: Make) -> None:
    done: list[tuple[str, str]] = []

    def hook(operation: str, key: str, act: Callable[[], object]) -> object:
        done.append((operation, key))
        return act()

    node = make(MemoryStore(hook=hook))
    put(node.store, archive(*good()))
    before = dict(node.store.objects)
    node.compile()
    node.ask()
    node.end()
    assert (node.events, node.store.objects) == ([], before)
    assert set(done) == {("get", f"compiled/{KEY}.json")}


def test_a_note_that_cannot_be_read_is_replaced(make: Make) -> None:
    node = make()
    node.store.objects[f"compiled/{KEY}.json"] = b"{"
    node.compile()
    node.ask()
    node.end()
    assert node.events == ["compiled step put into the store (0.0 MB)"]
    assert note_of(node.store).node == "n1"


def test_a_step_that_nobody_asked_for_stays_here(make: Make) -> None:
    node = make()
    node.compile()
    (node.wanted / "strange").touch()
    node.end()
    assert node.store.objects == {}
    assert (node.wanted / "strange").exists()


def test_of_two_nodes_at_once_the_first_wins(make: Make) -> None:
    theirs = archive(*good({"gradient.pt2": b"theirs"}))

    def meanwhile(operation: str, key: str, act: Callable[[], object]) -> object:
        if operation == "create":
            put(store, theirs)
        return act()

    store = MemoryStore(hook=meanwhile)
    node = make(store)
    node.compile()
    node.ask()
    node.end()
    sha256 = hashlib.sha256(theirs).hexdigest()
    assert set(store.objects) == {f"compiled/{KEY}.json", f"compiled/{KEY}/{sha256}.tar"}
    assert node.events == []


def test_while_it_is_compiled_here_nothing_is_touched(make: Make) -> None:
    node = make()
    put(node.store, archive(*good()))
    folder = node.entries / KEY
    folder.mkdir(parents=True)
    (folder / "half").write_bytes(b"written")
    with (node.entries / f".{KEY}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node.ask()
    assert (node.kept, node.events) == ({"half": b"written"}, [])


def test_what_a_killed_compiler_has_left_is_replaced(make: Make) -> None:
    node = make()
    put(node.store, archive(*good()))
    (node.entries / KEY).mkdir(parents=True)
    (node.entries / KEY / "half").write_bytes(b"written")
    node.ask()
    assert node.kept == FILES


# ---------------------------------------------------------------------- what is not taken

OUTSIDE, ABSOLUTE = "../../outside", "/absolute"
HOSTILE = {
    "absolute": [member(ABSOLUTE), *good()],
    "above": [member(OUTSIDE), *good()],
    "above, later": [*good(), member(f"inductor/{OUTSIDE}")],
    "symlink": [member("inductor", b"", type=tarfile.SYMTYPE, linkname="/etc"), *good()],
    "hard link": [member("passwd", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"), *good()],
    "device": [member("null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3), *good()],
    "pipe": [member("pipe", b"", type=tarfile.FIFOTYPE), *good()],
    "folder": [member("folder", b"", type=tarfile.DIRTYPE, mode=0), *good()],
    "sparse": [member("zeros", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "99"}), *good()],
    "twice": [*good(), member("gradient.pt2")],
    "file and folder": [*good(), member("gradient.pt2/below")],
    "no name": [member("."), *good()],
    "zero byte": [member("a", pax_headers={"path": "a\0b"}), *good()],
    "without entry": good()[:-1],
    "bad entry": [*good()[:-1], member(ENTRY, b"[]")],
    "other sum": [member("gradient.pt2"), *good()[1:]],
    "file missing": good()[1:],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_and_removed(
    make: Make, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    node = make()
    for info, _ in members:
        info.name = info.name.replace(ABSOLUTE, str(tmp_path / "outside"))
    put(node.store, archive(*members))
    node.ask()
    assert len(node.events) == 1
    assert node.events[0].startswith("the store's compiled step cannot be used and is removed: ")
    assert node.store.objects == {}
    assert not (node.entries / KEY).exists()
    assert node.rest == set()
    assert not list(tmp_path.rglob("outside*"))
    node.compile()
    node.end()
    assert node.events[1:] == ["compiled step put into the store (0.0 MB)"]


def test_sizes_are_believed_only_as_far_as_the_archive_goes(make: Make) -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 40
    node = make()
    put(node.store, info.tobuf() + archive(*good()))
    node.ask()
    assert "more in it than it could hold" in node.events[0]
    assert node.store.objects == {}


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize("what", ["flipped", "short", "long", "gone", "note", "huge"])
def test_a_damaged_entry_is_removed_and_replaced(make: Make, what: str) -> None:
    node = make()
    tar = archive(*good())
    note = put(node.store, tar, **({"size": stored.MOST + 1} if what == "huge" else {}))
    name = f"compiled/{KEY}/{note.sha256}.tar"
    node.store.objects |= {
        "flipped": {name: flipped(tar)},
        "short": {name: tar[:-1]},
        "long": {name: tar + b"x"},
        "note": {f"compiled/{KEY}.json": b"{"},
    }.get(what, {})
    if what == "gone":
        del node.store.objects[name]
    node.ask()
    assert len(node.events) == 1
    assert f"compiled/{KEY}.json" not in node.store.objects
    assert not (node.entries / KEY).exists()
    node.compile()
    node.end()
    assert node.events[1:] == ["compiled step put into the store (0.0 MB)"]
    again = make(node.store)
    again.ask()
    assert again.kept == FILES


# ---------------------------------------------------------------------- trouble


def failing(operations: set[str], error: Exception) -> MemoryStore:
    def hook(operation: str, key: str, act: Callable[[], object]) -> object:
        if operation in operations:
            raise error
        return act()

    return MemoryStore(hook=hook)


def test_a_store_that_is_away_is_told_and_the_trainer_answered(make: Make) -> None:
    node = make(failing({"get"}, StoreUnavailableError("it is away")))
    node.ask()
    assert node.events == ["the compiled step could not be taken from the store: it is away"]


def test_a_store_that_is_full_is_told_once(make: Make) -> None:
    node = make(failing({"put"}, StoreFullError("no space")))
    node.ask()
    node.compile()
    wait_until(lambda: node.events, 20)
    node.end()
    assert node.events == ["the compiled step could not be put into the store: no space"]
    assert node.store.objects == {}
    assert node.kept == FILES
    assert node.rest == set()


def test_a_disk_that_cannot_be_written_is_told(make: Make) -> None:
    node = make()
    put(node.store, archive(*good()))
    node.cache.mkdir()
    node.entries.write_bytes(b"a file")
    node.ask()
    assert len(node.events) == 1
    assert node.events[0].startswith("the compiled step could not be taken from the store: ")
    assert len(node.store.objects) == 2


def test_a_damaged_step_is_not_given_to_others(make: Make) -> None:
    node = make()
    node.compile()
    (node.entries / KEY / "update.pt2").write_bytes(b"damaged")
    node.ask()
    node.end()
    assert node.events == [
        "the compiled step could not be put into the store: update.pt2 of a compiled step is damaged"
    ]
    assert node.store.objects == {}


def test_a_step_that_is_too_large_stays_here(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1000)
    node = make()
    node.compile()
    node.ask()
    node.end()
    assert node.events == ["the compiled step has 0.0 MB and is not shared"]
    assert node.store.objects == {}


def test_a_surprise_ends_sharing_and_nothing_else(make: Make) -> None:
    node = make(failing({"get"}, ZeroDivisionError("surprise")))
    node.ask()
    wait_until(lambda: node.events, 20)
    assert node.events == ["compiled steps are not shared any more: ZeroDivisionError: surprise"]


def test_checkpoints_go_first_and_the_end_is_not_held_up(make: Make) -> None:
    node = make()
    node.busy = True
    node.compile()
    node.ask()
    node.end(patience=0.2)
    node.steps._thread.join(20)
    assert not node.steps._thread.is_alive()
    assert (node.store.objects, node.events) == ({}, [])
    assert node.rest == set()


def test_it_is_sent_once_the_checkpoint_is_stored(make: Make) -> None:
    node = make()
    node.busy = True
    node.compile()
    node.ask()
    threading.Timer(0.1, lambda: setattr(node, "busy", False)).start()
    node.end()
    assert node.events == ["compiled step put into the store (0.0 MB)"]


def test_who_is_in_a_hurry_does_not_wait(make: Make) -> None:
    node = make()
    node.busy = True
    node.compile()
    node.ask()
    node.steps.end(1e9, time.sleep, lambda: True)
    assert node.store.objects == {}


def test_what_killed_agents_left_is_removed_after_a_day(tmp_path: Path) -> None:
    node = Node(tmp_path, MemoryStore())
    for name, age in ((".old.part", 2), (".new.part", 0), (".other", 2)):
        (node.entries / name).mkdir(parents=True)
        os.utime(node.entries / name, (time.time() - age * 86400.0,) * 2)
    node.steps.start()
    node.end()
    assert node.rest == {".new.part", ".other"}


@pytest.mark.parametrize(("text", "meant"), [("1", True), ("0", False), ("", False), (" 1 ", True)])
def test_a_switch(text: str, meant: bool) -> None:
    assert flag("ORCH_SHARE_COMPILED", {"ORCH_SHARE_COMPILED": text}) is meant
    assert flag("ORCH_SHARE_COMPILED", {}) is False


def test_a_switch_that_says_neither() -> None:
    with pytest.raises(SetupError, match="ORCH_SHARE_COMPILED") as caught:
        flag("ORCH_SHARE_COMPILED", {"ORCH_SHARE_COMPILED": "yes"})
    assert caught.value.remedy == "Write ORCH_SHARE_COMPILED=1 or ORCH_SHARE_COMPILED=0."
