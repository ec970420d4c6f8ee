"""Attempts of one run, interleaved operation by operation with crashes and lost answers, keep the rules:

1. a slot of the log holds one record for ever, and at most one checkpoint per step counts;
2. after the fence of an attempt nothing of an earlier one appears;
3. a checkpoint that counts can be loaded, and what was acknowledged stays in the log.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.errors import FencedError, StoreUnavailableError
from orchestrator.store.checkpoints import CheckpointRecord, CheckpointWriter, points, restore
from orchestrator.store.records import data_key
from orchestrator.store.runlog import Claim, RunLog
from tests.unit.store.helpers import RUN, contents, make_directory, read_directory
from tests.unit.store.memory_store import MemoryStore
from tests.unit.store.stepped import Actor

STEPS = 4
SOURCES = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, SOURCES, ignore_errors=True)


def source(step: int, attempt: int) -> Path:
    """A checkpoint directory, different for each attempt; made once."""
    directory = SOURCES / f"step-{step:08d}{attempt}"
    return directory if directory.exists() else make_directory(SOURCES, step, str(attempt))


class Attempts(RuleBasedStateMachine):
    """Two attempts are alive at a time, and the newer one is not always the one that moves."""

    @initialize()
    def begin(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.actors: list[Actor] = []
        self.writers: dict[int, CheckpointWriter] = {}
        self.slots: dict[str, bytes] = {}
        self.acknowledged: list[CheckpointRecord] = []
        self.points: set[bytes] = set()
        self.next_attempt = 1
        self.start_attempt()
        self.finish(0)

    def alive(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.dead]

    def actor(self, number: int) -> Actor:
        return self.alive()[number % len(self.alive())]

    # ------------------------------------------------------------------ what happens

    @precondition(lambda self: len(self.alive()) < 2)
    @rule()
    def start_attempt(self) -> None:
        actor = Actor(self.objects, self.next_attempt)
        self.next_attempt += 1
        self.actors.append(actor)
        log = RunLog(actor.store, RUN)
        actor.begin(lambda: log.claim(actor.attempt, node="n"), lambda *end: self.claimed(actor, *end))

    def claimed(self, actor: Actor, claim: Claim | None, error: BaseException | None) -> None:
        if claim is None:
            assert isinstance(error, FencedError | StoreUnavailableError), error
            actor.dead = True
        else:
            assert json.loads(self.objects[f"runs/{RUN}/log/{claim.fence.slot:08d}.json"])["id"] == str(
                claim.fence.id
            )
            self.writers[actor.attempt] = CheckpointWriter(actor.store, claim)

    @precondition(alive)
    @rule(number=st.integers(0, 1), step=st.integers(1, STEPS))
    def start_commit(self, number: int, step: int) -> None:
        actor = self.actor(number)
        if not actor.idle or actor.attempt not in self.writers:
            return
        to, directory = self.writers[actor.attempt], source(step, actor.attempt)
        data = f"{actor.attempt} {step} {len(self.points)}\n".encode()
        self.points.add(data)
        fenced = self.owner() > actor.attempt

        def end(record: CheckpointRecord | None, error: BaseException | None) -> None:
            assert record is None or not fenced, "a commit that began after the fence succeeded"
            self.committed(record, error)

        actor.begin(lambda: to.commit(directory, step, metrics={}, device="d", node="n", points=data), end)

    def committed(self, record: CheckpointRecord | None, error: BaseException | None) -> None:
        if record is None:
            assert isinstance(error, FencedError | StoreUnavailableError), error
        else:
            self.acknowledged.append(record)

    @precondition(alive)
    @rule(number=st.integers(0, 1))
    def start_retain(self, number: int) -> None:
        actor = self.actor(number)
        if not actor.idle or actor.attempt not in self.writers:
            return
        to = self.writers[actor.attempt]
        actor.begin(lambda: to.retain(1, 0, "x", "min"), self.retained)

    def retained(self, steps: list[int] | None, error: BaseException | None) -> None:
        assert steps is not None or isinstance(error, FencedError | StoreUnavailableError), error

    @precondition(alive)
    @rule(number=st.integers(0, 1))
    def finish(self, number: int) -> None:
        self.proceed(number, 1000)

    @precondition(alive)
    @rule(number=st.integers(0, 1), operations=st.integers(1, 25))
    def proceed(self, number: int, operations: int) -> None:
        actor = self.actor(number)
        for _ in range(operations):
            if actor.idle or actor.dead:
                return
            actor.step("do")
            self.look()

    @precondition(alive)
    @rule(
        number=st.integers(0, 1),
        order=st.sampled_from(["do", "do", "do", "lost", "fail", "delayed", "crash", "died", "late"]),
    )
    def go_wrong(self, number: int, order: str) -> None:
        actor = self.actor(number)
        if not actor.idle and not actor.dead:
            actor.step(order)

    @precondition(alive)
    @rule(
        number=st.integers(0, 1), order=st.sampled_from(["lost", "fail", "delayed", "crash", "died", "late"])
    )
    def go_wrong_at_the_record(self, number: int, order: str) -> None:
        """The moment that decides deserves more attention than its share of the operations."""
        actor = self.actor(number)
        while not actor.idle and not actor.dead and actor.next_operation != "create":
            actor.step("do")
        if not actor.idle and not actor.dead:
            actor.step(order)
            self.look()

    @precondition(lambda self: any(actor.idle for actor in self.actors))
    @rule(number=st.integers(0, 1), step=st.integers(1, STEPS))
    def record_arrives_after_the_error(self, number: int, step: int) -> None:
        """A commit is told that the store is gone, gives up, and then its record arrives after all."""
        actor = self.actor(number)
        self.start_commit(number, step)
        self.go_wrong_at_the_record(number, "delayed")
        if not actor.dead:
            self.finish(number)
        if actor.late:
            actor.late.pop()()

    @precondition(lambda self: any(actor.late for actor in self.actors))
    @rule()
    def arrive_late(self) -> None:
        next(actor for actor in self.actors if actor.late).late.pop()()

    # ------------------------------------------------------------------ what must hold

    def records(self) -> list[dict[str, Any]]:
        """The log, read without any of the code under test."""
        keys = sorted(key for key in self.objects if "/log/" in key)
        assert keys == [f"runs/{RUN}/log/{slot:08d}.json" for slot in range(1, len(keys) + 1)]
        return [json.loads(self.objects[key]) for key in keys]

    def owner(self) -> int:
        return max((record["attempt"] for record in self.records()), default=0)

    @invariant()
    def look(self) -> None:
        for key, data in self.objects.items():
            if "/log/" in key:
                assert self.slots.setdefault(key, data) == data
        assert all(key in self.objects for key in self.slots)
        records = self.records()
        owner = 0
        live: dict[int, dict[str, Any]] = {}
        for record in records:
            assert record["attempt"] >= owner, "a record of an earlier attempt came after a fence"
            assert (record["attempt"] > owner) == (record["kind"] == "fence")
            owner = record["attempt"]
            if record["kind"] == "checkpoint":
                assert record["step"] not in live, "two checkpoints of one step count"
                live[record["step"]] = record
            elif record["kind"] == "retire":
                live = {step: one for step, one in live.items() if one["id"] not in record["checkpoints"]}
        for step, record in live.items():
            self.loadable(step, record)
        ids = {record["id"] for record in records}
        assert all(str(record.id) in ids for record in self.acknowledged)

    def loadable(self, step: int, record: dict[str, Any]) -> None:
        expected = contents(step, str(record["attempt"]))
        paths = [file["path"] for file in record["files"]]
        assert {path: self.objects.get(data_key(record["data"], path)) for path in paths} == expected

    def teardown(self) -> None:
        """Everything dies; the next attempt takes over, commits, cleans up and can be resumed from."""
        for actor in getattr(self, "actors", []):
            if not actor.idle and not actor.dead:
                actor.step("crash")
        if not hasattr(self, "objects"):
            return
        store = MemoryStore(self.objects)
        to = CheckpointWriter(store, RunLog(store, RUN).claim(self.next_attempt, node="n"))
        record = to.commit(
            source(9, self.next_attempt), 9, metrics={}, device="d", node="n", points=b"the last\n"
        )
        to.retain(1, 0, "x", "min")
        self.look()
        into = Path(tempfile.mkdtemp()) / "out"
        try:
            assert restore(store, RUN, None, into).record.id == record.id
            assert read_directory(into) == contents(9, str(self.next_attempt))
        finally:
            shutil.rmtree(into.parent)
        assert {key.rsplit("/", 1)[0] for key in self.objects if "/data/" in key} == {
            record.data,
            f"{record.data}/extra",
        }
        damaged: list[str] = []
        lines = b"".join(points(store, RUN, on_damage=damaged.append)).splitlines(keepends=True)
        assert damaged == []
        assert set(lines) <= self.points | {b"the last\n"}
        assert lines.count(b"the last\n") == 1


Attempts.TestCase.settings = settings(
    max_examples=70,
    stateful_step_count=80,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAttempts = pytest.mark.timeout(120)(Attempts.TestCase)
