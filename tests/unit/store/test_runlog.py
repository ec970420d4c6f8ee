"""The log: its format, who may write to it, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import FencedError, StoreFullError, StoreUnavailableError
from orchestrator.store.records import (
    CheckpointRecord,
)
from orchestrator.store.runlog import Claim, RunLog, Unreadable, fold
from tests.unit.store.log_records import FILE, RUN, checkpoint, fence, retire
from tests.unit.store.memory_store import MemoryStore


def save_checkpoint(claim: Claim, step: int) -> CheckpointRecord:
    return claim.append(
        lambda s: CheckpointRecord(
            **s, step=step, data=f"runs/{claim.run_id}/data/{claim.attempt}/{step}-x", files=(FILE,)
        )
    )


def kinds(store: MemoryStore) -> list[tuple[str, int]]:
    return [(record.kind, record.attempt) for record in RunLog(store, RUN).records()]


def slot_key(slot: int) -> str:
    return f"runs/{RUN}/log/{slot:08d}.json"


class TestFold:
    """What a log says, computed from its records alone."""

    def test_empty(self) -> None:
        assert (fold([]).owner, fold([]).last_slot, fold([]).live) == (0, 0, [])

    def test_records_of_the_fenced_do_not_count(self) -> None:
        """The slots make this impossible; if it were in the log nevertheless, it would not count."""
        good = checkpoint(2, 1, 10)
        history = fold(
            [fence(1, 1), good, fence(3, 2), checkpoint(4, 1, 20), retire(5, 1, good), fence(6, 1)]
        )
        assert history.owner == 2
        assert history.live == [good]
        assert history.last_slot == 6

    def test_the_first_of_a_step_counts(self) -> None:
        first, second = checkpoint(2, 1, 10), checkpoint(4, 2, 10)
        assert fold([fence(1, 1), first, fence(3, 2), second]).live == [first]

    def test_retired_steps_can_come_again(self) -> None:
        first, second = checkpoint(2, 1, 10), checkpoint(5, 2, 10)
        history = fold([fence(1, 1), first, fence(3, 2), retire(4, 2, first), second])
        assert history.live == [second]
        assert [record.retired for record in history.checkpoints] == [True, False]
        assert history.find(10) == second
        assert history.find(11) is None

    def test_a_lost_fence_record_does_not_disown_its_attempt(self) -> None:
        old, new = checkpoint(2, 1, 10), checkpoint(4, 2, 20)
        history = fold([fence(1, 1), old, Unreadable(3, "flipped"), new, checkpoint(5, 1, 30)])
        assert (history.owner, history.fence) == (2, None)
        assert history.live == [old, new]
        assert history.unreadable == (Unreadable(3, "flipped"),)


class TestClaim:
    """Who may write."""

    def test_first_and_next(self) -> None:
        store = MemoryStore()
        first = RunLog(store, RUN).claim(1, node="laptop")
        save_checkpoint(first, 10)
        second = RunLog(store, RUN).claim(3, node="gpu")
        save_checkpoint(second, 20)
        assert kinds(store) == [("fence", 1), ("checkpoint", 1), ("fence", 3), ("checkpoint", 3)]
        assert RunLog(store, RUN).records()[2].node == "gpu"

    @pytest.mark.parametrize("attempt", [1, 2])
    def test_not_for_the_same_or_an_older_attempt(self, attempt: int) -> None:
        store = MemoryStore()
        RunLog(store, RUN).claim(2, node="n")
        before = dict(store.objects)
        with pytest.raises(FencedError, match="belongs to attempt 2"):
            RunLog(store, RUN).claim(attempt, node="n")
        assert store.objects == before

    def test_not_twice_by_the_same_object(self) -> None:
        log = RunLog(MemoryStore(), RUN)
        log.claim(1, node="n")
        with pytest.raises(FencedError):
            log.claim(1, node="n")

    def test_check_is_cheap_and_notices(self) -> None:
        reads: list[str] = []

        def count(operation: str, key: str, act: Any) -> object:
            reads.append(f"{operation} {key}")
            return act()

        store = MemoryStore()
        claim = RunLog(MemoryStore(store.objects, count), RUN).claim(1, node="n")
        for step in range(5):
            save_checkpoint(claim, step)
        claim.check()
        reads.clear()
        claim.check()
        assert reads == [f"get {slot_key(7)}"]
        RunLog(store, RUN).claim(2, node="n")
        with pytest.raises(FencedError, match="attempt 2 has taken run r from attempt 1"):
            claim.check()

    def test_a_fenced_attempt_leaves_nothing(self) -> None:
        store = MemoryStore()
        zombie = RunLog(store, RUN).claim(1, node="n")
        RunLog(store, RUN).claim(2, node="n")
        before = dict(store.objects)
        for _ in range(3):
            with pytest.raises(FencedError):
                save_checkpoint(zombie, 1)
        assert store.objects == before

    def test_a_fence_between_the_look_and_the_write(self) -> None:
        """The slot decides: whoever looked before the fence and writes after it loses."""
        objects: dict[str, bytes] = {}
        armed = [False]

        def hook(operation: str, key: str, act: Any) -> object:
            if operation == "create" and armed[0]:
                armed[0] = False
                RunLog(MemoryStore(objects), RUN).claim(2, node="n")
            return act()

        claim = RunLog(MemoryStore(objects, hook), RUN).claim(1, node="n")
        armed[0] = True
        with pytest.raises(FencedError):
            save_checkpoint(claim, 1)
        assert kinds(MemoryStore(objects)) == [("fence", 1), ("fence", 2)]

    def test_own_records_between_the_look_and_the_write(self) -> None:
        objects: dict[str, bytes] = {}
        armed = [False]

        def hook(operation: str, key: str, act: Any) -> object:
            if operation == "create" and armed[0]:
                armed[0] = False
                save_checkpoint(claim, 1)
            return act()

        claim = RunLog(MemoryStore(objects, hook), RUN).claim(1, node="n")
        armed[0] = True
        assert save_checkpoint(claim, 2).slot == 3
        assert [c.step for c in RunLog(MemoryStore(objects), RUN).history().live] == [1, 2]

    def test_a_store_that_never_shows_what_it_refuses(self) -> None:
        def hook(operation: str, key: str, act: Any) -> object:
            return False if operation == "create" else act()

        with pytest.raises(StoreUnavailableError, match="in a row went to somebody else"):
            RunLog(MemoryStore(hook=hook), RUN).claim(1, node="n")


class _Answers:
    """Says for the next create-only write whether it takes place, and what is answered."""

    def __init__(self) -> None:
        self.happens = True
        self.answer: Exception | bool | None = None

    def __call__(self, operation: str, key: str, act: Any) -> object:
        if operation != "create" or self.answer is None:
            return act()
        answer, self.answer = self.answer, None
        if self.happens:
            act()
        if isinstance(answer, Exception):
            raise answer
        return answer


class TestLostAnswers:
    """An error, or a refusal, may come after the write took place."""

    @pytest.mark.parametrize("answer", [StoreUnavailableError("lost"), StoreFullError("lost"), False])
    def test_the_record_is_there(self, answer: Exception | bool) -> None:
        answers = _Answers()
        store = MemoryStore(hook=answers)
        claim = RunLog(store, RUN).claim(1, node="n")
        answers.answer = answer
        assert save_checkpoint(claim, 1).slot == 2
        assert kinds(store) == [("fence", 1), ("checkpoint", 1)]

    @pytest.mark.parametrize("answer", [StoreUnavailableError("lost"), StoreFullError("full")])
    def test_the_record_is_not_there(self, answer: Exception) -> None:
        answers = _Answers()
        store = MemoryStore(hook=answers)
        claim = RunLog(store, RUN).claim(1, node="n")
        answers.answer, answers.happens = answer, False
        with pytest.raises(type(answer)):
            save_checkpoint(claim, 1)
        assert kinds(store) == [("fence", 1)]

    def test_a_claim_asked_again_knows_its_fence(self) -> None:
        """The store answers nothing, not even the question whether the fence is there."""
        gone = [False]

        def hook(operation: str, key: str, act: Any) -> object:
            if operation == "create" and not gone[0]:
                act()
                gone[0] = True
            if gone[0]:
                raise StoreUnavailableError("gone")
            return act()

        objects: dict[str, bytes] = {}
        store = MemoryStore(objects, hook)
        log = RunLog(store, RUN)
        with pytest.raises(StoreUnavailableError):
            log.claim(1, node="n")
        store._hook = lambda operation, key, act: act()
        with pytest.raises(FencedError):
            RunLog(MemoryStore(objects), RUN).claim(1, node="another process")
        claim = log.claim(1, node="n")
        claim.check()
        assert kinds(MemoryStore(objects)) == [("fence", 1)]
        with pytest.raises(FencedError):
            log.claim(1, node="n")


class TestDamage:
    """A slot that cannot be read."""

    def damage(self, store: MemoryStore, slot: int) -> None:
        data = bytearray(store.objects[slot_key(slot)])
        data[20] ^= 4
        store.objects[slot_key(slot)] = bytes(data)

    def test_it_is_said_and_the_rest_is_read(self) -> None:
        store = MemoryStore()
        claim = RunLog(store, RUN).claim(1, node="n")
        for step in (1, 2, 3):
            save_checkpoint(claim, step)
        self.damage(store, 3)
        log = RunLog(store, RUN)
        assert [record.slot for record in log.records()] == [1, 2, 4]
        assert [slot.slot for slot in log.unreadable()] == [3]
        assert [c.step for c in log.history().live] == [1, 3]

    def test_the_next_attempt_goes_on(self) -> None:
        store = MemoryStore()
        RunLog(store, RUN).claim(1, node="n")
        self.damage(store, 1)
        claim = RunLog(store, RUN).claim(2, node="n")
        assert save_checkpoint(claim, 1).slot == 3

    def test_an_owner_that_cannot_tell_stops(self) -> None:
        store = MemoryStore()
        zombie = RunLog(store, RUN).claim(1, node="n")
        RunLog(store, RUN).claim(2, node="n")
        self.damage(store, 2)
        with pytest.raises(FencedError, match="cannot tell"):
            save_checkpoint(zombie, 1)

    def test_a_bad_read_is_repeated(self) -> None:
        bad = [1]

        def hook(operation: str, key: str, act: Any) -> object:
            data = act()
            if operation == "get" and data and bad[0]:
                bad[0] -= 1
                return data[:-5]
            return data

        store = MemoryStore()
        RunLog(store, RUN).claim(1, node="n")
        assert RunLog(MemoryStore(store.objects, hook), RUN).unreadable() == []
