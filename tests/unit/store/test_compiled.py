"""Compiled steps in the store: which archive counts, and what is garbage."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.store.compiled import StepNote, collect, find, is_key, publish, wipe
from tests.unit.store.memory_store import MemoryStore

NOW = datetime(2026, 7, 1, tzinfo=UTC)
YOUNG, OLD = "a" * 32, "b" * 32


def note(data: bytes, days: int = 0) -> StepNote:
    at = NOW - timedelta(days=days)
    return StepNote(sha256=hashlib.sha256(data).hexdigest(), size=len(data), at=at)


def test_the_first_one_counts_and_the_second_leaves_nothing() -> None:
    store = MemoryStore()
    assert publish(store, YOUNG, note(b"one"), b"one")
    before = dict(store.objects)
    assert not publish(store, YOUNG, note(b"two"), b"two")
    assert not publish(store, YOUNG, note(b"one"), b"one")  # whose archive is the one that counts
    assert (find(store, YOUNG), store.objects) == (note(b"one"), before)


def test_what_was_wiped_can_be_stored_again() -> None:
    store = MemoryStore()
    publish(store, YOUNG, note(b"one"), b"one")
    wipe(store, YOUNG, note(b"one"))
    assert (find(store, YOUNG), store.objects) == (None, {})
    assert publish(store, YOUNG, note(b"two"), b"two")


def test_garbage_is_what_is_old_or_does_not_count() -> None:
    store = MemoryStore({"runs/x/log/00000001.json": b"not ours"})
    publish(store, YOUNG, note(b"young", days=89), b"young")
    kept = dict(store.objects)
    publish(store, OLD, note(b"old", days=91), b"old")
    store.objects |= {f"compiled/{'c' * 32}.json": b"{", f"compiled/{YOUNG}/{'0' * 64}.tar": b"orphan"}
    before, put_before = dict(store.objects), NOW - timedelta(days=90)
    would = collect(store, put_before, dry_run=True)
    assert store.objects == before
    assert {info.key for info in would} == set(before) - set(kept)
    assert sum(info.size for info in would if info.key.endswith(".tar")) == len(b"old") + len(b"orphan")
    assert collect(store, put_before) == would
    assert store.objects == kept
    assert collect(store, put_before) == []


@pytest.mark.parametrize("text", ["", "a" * 31, "A" * 32, "../" + "a" * 29, "a" * 32 + "\n", f".{'a' * 31}"])
def test_other_names_are_no_keys(text: str) -> None:
    assert not is_key(text)
    assert is_key(YOUNG)
