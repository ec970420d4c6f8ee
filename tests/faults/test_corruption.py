"""Damage of a real trainer's checkpoint in the store, thousands of kinds: all is noticed before anything is
parsed, the checkpoint before is used, and it is said.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest

from orchestrator.errors import DamagedError
from orchestrator.store.checkpoints import CheckpointRecord, checkpoints, restore, verify
from tests.unit.store.helpers import RUN, log_keys, read_directory, writer
from tests.unit.store.memory_store import MemoryStore
from tests.unit.trainer.support import start, tiny, write_text

MUTATIONS = 5000
PAGE = 4096
OLD, NEW = 3, 6


@dataclass(frozen=True)
class Saved:
    """A store with two checkpoints, and the directories that they were made of."""

    objects: dict[str, bytes]
    files: dict[int, dict[str, bytes]]
    records: dict[int, CheckpointRecord]

    def key(self, step: int, name: str) -> str:
        record = self.records[step]
        return next(record.key(file) for file in record.files if file.path == name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.progress.gemm_peak", lambda hardware, again=False: 1e12)
        training, _ = start(
            tiny(write_text(folder), checkpoint_interval=OLD, max_steps=NEW, n_embd=32), folder
        )
        assert training.run() == 0
    store = MemoryStore()
    to = writer(store)
    files = {step: folder / f"step-{step:08d}" for step in (OLD, NEW)}
    for step, directory in files.items():
        to.commit(directory, step, metrics={}, device="cpu", node="n")
    records = {record.step: record for record in checkpoints(store, RUN)}
    return Saved(store.objects, {step: read_directory(path) for step, path in files.items()}, records)


@pytest.fixture
def into() -> Iterator[Path]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder / "restored"
    shutil.rmtree(folder)


Change = dict[str, bytes | None]
"""New contents of some objects; None: it is gone."""


def damages(saved: Saved) -> Iterator[tuple[str, Change]]:
    """Kinds of damage to the newest checkpoint's files, each with what changes."""
    names = sorted(saved.files[NEW])
    for name in names:
        key, data = saved.key(NEW, name), saved.files[NEW][name]
        for size in {*range(0, len(data), PAGE), len(data) - 1, len(data) // 2, 1}:
            yield "cut short", {key: data[:size]}
        for more in (b"\0", b"\n", data, bytes(PAGE), b"}" * 7):
            yield "longer", {key: data + more}
        for begin in range(0, len(data), PAGE):
            piece = data[begin : begin + PAGE]
            yield "a page of zeros", {key: data[:begin] + bytes(len(piece)) + data[begin + PAGE :]}
            yield "a page left out", {key: data[:begin] + data[begin + PAGE :]}
        yield "gone", {key: None}
        for other in saved.files[OLD].values():
            yield "of another checkpoint", {key: other}
    for one, two in permutations(names, 2):
        yield (
            "swapped",
            {saved.key(NEW, one): saved.files[NEW][two], saved.key(NEW, two): saved.files[NEW][one]},
        )
    yield "all gone", {saved.key(NEW, name): None for name in names}


def flips(data: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """One bit is wrong, anywhere; the beginning, where headers are, gets its share."""
    for number in range(count):
        changed = bytearray(data)
        place = rng.randrange(min(len(data), 300) if number % 3 == 0 else len(data))
        changed[place] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def test_every_damage_is_noticed_and_the_checkpoint_before_is_used(saved: Saved, into: Path) -> None:
    rng = random.Random(11)
    seen: set[bytes] = set()
    kinds: Counter[str] = Counter()

    def changes() -> Iterator[tuple[str, Change]]:
        yield from damages(saved)
        for name, data in saved.files[NEW].items():
            yield from (("a bit of a file", {saved.key(NEW, name): bad}) for bad in flips(data, rng, 900))
        keys = log_keys(MemoryStore(saved.objects))
        record = saved.objects[keys[-1]]
        yield from (("a bit of the record", {keys[-1]: bad}) for bad in flips(record, rng, 1200))
        yield from (("the record cut short", {keys[-1]: record[:size]}) for size in range(len(record)))
        yield from (("another record", {keys[-1]: saved.objects[key]}) for key in keys[:-1])

    for kind, change in changes():
        identity = hashlib.sha256(repr(sorted(change.items())).encode()).digest()
        if identity in seen or all(saved.objects.get(key) == data for key, data in change.items()):
            continue
        seen.add(identity)
        kinds[kind] += 1
        objects = {**saved.objects, **{key: data for key, data in change.items() if data is not None}}
        for key in (key for key, data in change.items() if data is None):
            del objects[key]
        restored = restore(MemoryStore(objects), RUN, None, into)
        assert restored.record.step == OLD, (kind, "the damage went unnoticed")
        assert read_directory(into) == saved.files[OLD], kind
        assert restored.unreadable if "record" in kind else [r.step for r, _ in restored.skipped] == [NEW]
        assert all(why for _, why in restored.skipped)
        shutil.rmtree(into)
    print(f"\n{kinds.total()} mutations: {dict(kinds)}")
    assert kinds.total() >= MUTATIONS
    assert len(kinds) == 12, kinds


def test_damage_before_the_newest_does_no_harm(saved: Saved, into: Path) -> None:
    """Only what is read is judged, and what is wrong is said."""
    rng = random.Random(12)
    keys = log_keys(MemoryStore(saved.objects))
    for key in keys[:-1]:
        for bad in flips(saved.objects[key], rng, 50):
            restored = restore(MemoryStore({**saved.objects, key: bad}), RUN, None, into)
            assert restored.record.step == NEW
            assert [slot.slot for slot in restored.unreadable] == [keys.index(key) + 1]
            shutil.rmtree(into)
    for name, data in saved.files[OLD].items():
        for bad in flips(data, rng, 50):
            store = MemoryStore({**saved.objects, saved.key(OLD, name): bad})
            assert verify(store, saved.records[OLD]) == [f"{name} does not match its SHA-256"]
            assert verify(store, saved.records[NEW]) == []


def test_where_both_are_damaged_nothing_is_restored(saved: Saved, into: Path) -> None:
    rng = random.Random(13)
    for _ in range(50):
        objects = dict(saved.objects)
        for step in (OLD, NEW):
            name = rng.choice(sorted(saved.files[step]))
            objects[saved.key(step, name)] = next(flips(saved.files[step][name], rng, 1))
        with pytest.raises(DamagedError, match=f"step {NEW}: .* step {OLD}: ") as caught:
            restore(MemoryStore(objects), RUN, None, into)
        assert caught.value.remedy
        assert list(into.parent.iterdir()) == []
