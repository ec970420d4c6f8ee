"""Attempts of one run that share a store in memory, step by step, and the rules that must hold after each.

1. A slot of the log holds one record for ever, and at most one checkpoint per step counts.
2. After the fence of an attempt nothing of an earlier one appears.
3. A checkpoint that counts can be loaded with the bytes that were committed, the newest one is what a restore
   brings, and what was acknowledged stays in the log.

A step is one decision: an attempt begins something, or one operation that it asks of the store is carried
out, fails, loses its answer, or is the last thing that the attempt ever did.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from orchestrator.errors import FencedError, NotFoundError, StoreUnavailableError
from orchestrator.store.checkpoints import CheckpointRecord, CheckpointWriter, points, restore
from orchestrator.store.gc import Garbage, collect
from orchestrator.store.records import Tag, data_key
from orchestrator.store.runlog import Claim, History, RunLog
from tests.faults.stepped import Actor
from tests.unit.store.memory_store import MemoryStore

RUN = "run-1"
STEPS = 4
"""Checkpoints are of steps 1 to 4."""
WRONG = ("lost", "fail", "delayed", "crash", "died", "late")
WEATHER = {"calm": ("do",) * 244 + WRONG, "rough": ("do",) * 40 + WRONG}
"""What may become of an operation; each is as likely."""
CHOICES = 1024
"""A choice is a number below this."""


LARGE = 32
"""Bytes from which a file counts as large here."""


@contextmanager
def small_is_large() -> Iterator[None]:
    """Have small files go the ways of large ones: sent one by one, not sent twice, shared if unchanged."""
    with mock.patch.multiple("orchestrator.store.upload", WORTH_SHARING=LARGE, _LARGE=LARGE):
        yield


def contents(step: int, attempt: int) -> dict[str, bytes]:
    """What an attempt's checkpoint of a step holds. One large file changes, the other hardly ever does."""
    return {
        "state.json": b"%d of %d" % (step, attempt),
        "sub/frozen": bytes([attempt // 4 % 256]) * LARGE,
        "sub/weights": bytes([step, attempt % 256]) * LARGE,
    }


class Sources:
    """Checkpoint directories, each made once. In memory where possible."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))

    def get(self, step: int, attempt: int) -> Path:
        """The finished directory of an attempt's step."""
        directory = self.folder / f"{attempt}-{step}"
        if not directory.exists():
            for path, data in contents(step, attempt).items():
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                (directory / path).write_bytes(data)
        return directory

    def close(self) -> None:
        """Remove all."""
        shutil.rmtree(self.folder)


class Objects(dict[str, bytes]):
    """What is stored; knows whether it was changed, and that the log only grows."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = False

    def __setitem__(self, key: str, data: bytes) -> None:
        assert "/log/" not in key or self.get(key, data) == data, "a record was replaced"
        self.changed = True
        super().__setitem__(key, data)

    def pop(self, key: str, *default: Any) -> Any:
        """See dict."""
        assert "/log/" not in key, "a record was deleted"
        self.changed = True
        return super().pop(key, *default)


class Log:
    """What the log says, read without any of the code under test."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.owner = 0
        self.length = 0
        self.live: dict[int, dict[str, Any]] = {}
        """Checkpoints that count, by step, in the order of the log."""
        self.ids: set[str] = set()
        """Of all fences, and of the checkpoints that counted when they were written."""
        self.tags: dict[str, str] = {}
        self._data: set[str] = set()
        self._discarded: set[str] = set()

    def read_on(self) -> bool:
        """Take in what is new, and see that it obeys rules 1 and 2; whether there was anything."""
        before = self.length
        while (data := self._objects.get(f"runs/{RUN}/log/{self.length + 1:08d}.json")) is not None:
            self.length += 1
            self._take(json.loads(data))
        return self.length > before

    def _take(self, record: dict[str, Any]) -> None:
        assert record["attempt"] >= self.owner, "a record of an earlier attempt came after a fence"
        assert (record["attempt"] > self.owner) == (record["kind"] == "fence")
        self.owner = record["attempt"]
        if record["kind"] == "fence":
            self.ids.add(record["id"])
        elif record["kind"] == "checkpoint":
            self._commit(record)
        elif record["kind"] == "retire":
            self._retire(set(record["checkpoints"]))
        elif record["kind"] == "tag":
            self.tags[record["name"]] = record["checkpoint"]
        else:
            self._discarded |= set(record["data"]) - self._data

    def _commit(self, record: dict[str, Any]) -> None:
        if record["data"] not in self._discarded:
            assert record["step"] not in self.live, "two checkpoints of one step count"
            self.live[record["step"]] = record
            self.ids.add(record["id"])
            self._data.add(record["data"])

    def _retire(self, ids: set[str]) -> None:
        assert not ids & set(self.tags.values()), "a checkpoint with a tag was retired"
        assert next(reversed(self.live.values()))["id"] not in ids, "the newest checkpoint was retired"
        self.live = {step: one for step, one in self.live.items() if one["id"] not in ids}

    @property
    def newest(self) -> dict[str, Any] | None:
        """The checkpoint to go on from."""
        return next(reversed(self.live.values()), None)


class World:
    """Two attempts are alive at a time, and the newer one is not always the one that moves. Besides, somebody
    collects garbage and gives names to checkpoints.
    """

    def __init__(self, sources: Sources, weather: str) -> None:
        self.sources = sources
        self.orders = WEATHER[weather]
        self.objects = Objects()
        self.log = Log(self.objects)
        self.actors: list[Actor] = []
        """Attempts, and the one who collects garbage by the number 0."""
        self.writers: dict[int, CheckpointWriter] = {}
        self.acknowledged: list[CheckpointRecord] = []
        self.points: set[bytes] = set()
        self.late: list[Callable[[], object]] = []
        """Requests on their way whose senders may be dead."""
        self.next_attempt = 1
        self.steps = 0
        self.restored = 0
        """How often the newest checkpoint was restored."""

    # ------------------------------------------------------------------ steps

    def step(self, number: int, choice: int) -> None:
        """One decision: which attempt moves, and what becomes of it."""
        self.steps += 1
        attempts = sum(actor.attempt > 0 for actor in self.actors)
        if not attempts or (attempts < 2 and choice % 8 == 0):
            self._start_attempt()
        elif attempts == len(self.actors) and choice % 8 == 7:
            self.actors.append(Actor(self.objects, 0))
        elif self.late and choice % 32 == 1:
            self.late.pop(choice % len(self.late))()
        else:
            self._move(self.actors[number % len(self.actors)], choice)
        self.actors = [actor for actor in self.actors if not actor.dead]
        self.look()

    def go_wrong_at_the_record(self, number: int, choice: int) -> None:
        """The moment that decides deserves more attention than its share of the operations."""
        if not self.actors:
            return
        actor = self.actors[number % len(self.actors)]
        while not (actor.idle or actor.dead or actor.next_operation == "create"):
            self._order(actor, "do")
        if not (actor.idle or actor.dead):
            self._order(actor, WRONG[choice % len(WRONG)])

    def finish(self, number: int) -> None:
        """What an attempt is doing comes to its end undisturbed."""
        if self.actors:
            actor = self.actors[number % len(self.actors)]
            while not (actor.idle or actor.dead):
                self._order(actor, "do")

    def _order(self, actor: Actor, order: str) -> None:
        self.steps += 1
        self._let(actor, order)
        self.actors = [actor for actor in self.actors if not actor.dead]
        self.look()

    def _move(self, actor: Actor, choice: int) -> None:
        if not actor.idle:
            self._let(actor, self.orders[choice % len(self.orders)])
        elif actor.attempt == 0:
            self._start_collect(actor, choice)
        elif choice % 4 == 0:
            self._start_retain(actor, choice)
        else:
            self._start_commit(actor, 1 + choice % STEPS)

    def _let(self, actor: Actor, order: str) -> None:
        actor.step(order)
        self.late += actor.late
        actor.late.clear()

    def _start_attempt(self) -> None:
        actor = Actor(self.objects, self.next_attempt)
        self.next_attempt += 1
        self.actors.append(actor)
        log = RunLog(actor.store, RUN)

        def claimed(claim: Claim | None, error: BaseException | None) -> None:
            if claim is None:
                _expected(error)
                actor.close()
            else:
                self.writers[actor.attempt] = CheckpointWriter(actor.store, claim)
                self.log.read_on()
                assert str(claim.fence.id) in self.log.ids

        actor.begin(lambda: log.claim(actor.attempt, node="n"), claimed)

    def _start_commit(self, actor: Actor, step: int) -> None:
        to, directory = self.writers[actor.attempt], self.sources.get(step, actor.attempt)
        data = b"%d %d %d\n" % (actor.attempt, step, len(self.points))
        self.points.add(data)
        fenced = self.log.owner > actor.attempt

        def committed(record: CheckpointRecord | None, error: BaseException | None) -> None:
            if record is None:
                _expected(error)
            else:
                assert not fenced, "a commit that began after the fence succeeded"
                self.acknowledged.append(record)

        metrics = {"x": float(step * 7 % 5)}
        actor.begin(
            lambda: to.commit(directory, step, metrics=metrics, device="d", node="n", points=data), committed
        )

    def _start_retain(self, actor: Actor, choice: int) -> None:
        to = self.writers[actor.attempt]

        def retained(steps: list[int] | None, error: BaseException | None) -> None:
            if steps is None:
                _expected(error)

        policy = (1 + choice // 4 % 2, choice // 8 % 2)
        every = 2 if choice // 16 % 4 == 0 else None
        actor.begin(lambda: to.retain(*policy, "x", "min", keep_every=every), retained)

    def _start_collect(self, actor: Actor, choice: int) -> None:
        """Somebody collects garbage, wrong perhaps in that the run has ended, or names a checkpoint."""
        log, now, ended = RunLog(actor.store, RUN), datetime.now(UTC), choice % 3 == 0
        picked = choice // 4

        def name(stamp: dict[str, Any], history: History) -> Tag:
            live = [*history.live, None]
            one = live[picked % len(live)]
            return Tag(**stamp, name="it", checkpoint=one.id if one else None)

        def done(result: Garbage | Tag | None, error: BaseException | None) -> None:
            if result is None and not isinstance(error, NotFoundError):
                _expected(error)

        if choice % 4 == 1:
            actor.begin(lambda: log.note(name), done)
        else:
            actor.begin(lambda: collect(actor.store, RUN, ended=ended, retired_before=now), done)

    # ------------------------------------------------------------------ what must hold

    def look(self) -> None:
        """See that the rules hold."""
        if not self.objects.changed:
            return
        self.objects.changed = False
        news = self.log.read_on()
        for step, record in self.log.live.items():
            expected = contents(step, record["attempt"])
            assert [file["path"] for file in record["files"]] == sorted(expected)
            for file in record["files"]:
                key = file.get("key") or data_key(record["data"], file["path"])
                assert self.objects.get(key) == expected[file["path"]], "a live file is not there"
        if news:
            assert all(str(record.id) in self.log.ids for record in self.acknowledged)
            self._restore_newest()

    def _restore_newest(self) -> None:
        newest, into = self.log.newest, self.sources.folder / "restored"
        try:
            restored = restore(MemoryStore(self.objects), RUN, None, into)
        except NotFoundError:
            assert newest is None
            return
        assert newest is not None
        self.restored += 1
        assert str(restored.record.id) == newest["id"], "not the newest was restored"
        assert (restored.skipped, restored.unreadable) == ([], ())
        for path, data in contents(newest["step"], newest["attempt"]).items():
            assert (into / path).read_bytes() == data
        shutil.rmtree(into)

    def end(self) -> None:
        """All die; the next attempt takes over, commits, cleans up and can be resumed from."""
        self.close()
        store, attempt = MemoryStore(self.objects), self.next_attempt
        to = CheckpointWriter(store, RunLog(store, RUN).claim(attempt, node="n"))
        source = self.sources.get(9, attempt)
        record = to.commit(source, 9, metrics={}, device="d", node="n", points=b"the last\n")
        to.retain(1, 0, "x", "min")
        self.look()
        assert self.log.newest is not None
        assert self.log.newest["id"] == str(record.id)
        tagged = [one for one in self.log.live.values() if one["id"] in self.log.tags.values()]
        data = {record.key(file) for record in RunLog(store, RUN).history().live for file in record.files}
        assert len(self.log.live) == 1 + len(tagged)
        assert {key for key in self.objects if "/data/" in key} == data
        damaged: list[str] = []
        lines = b"".join(points(store, RUN, on_damage=damaged.append)).splitlines(keepends=True)
        assert damaged == []
        assert set(lines) <= self.points | {b"the last\n"}
        assert lines.count(b"the last\n") == 1

    def close(self) -> None:
        """End all threads."""
        for actor in self.actors:
            actor.close()
        self.actors.clear()


def _expected(error: BaseException | None) -> None:
    if not isinstance(error, FencedError | StoreUnavailableError):
        raise AssertionError(f"ended with {error!r}") from error


def walk(seed: int, steps: int, sources: Sources) -> World:
    """A world after that many steps drawn by a seeded die, ended."""
    world, die = World(sources, "rough" if seed % 2 else "calm"), random.Random(seed)
    try:
        while world.steps < steps:
            number, choice = die.randrange(2), die.randrange(CHOICES)
            if die.randrange(60):
                world.step(number, choice)
            else:
                world.go_wrong_at_the_record(number, choice)
        world.end()
    finally:
        world.close()
    return world
