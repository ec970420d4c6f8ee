"""A sampler may think for seconds: nobody waits for it, and answers that come too late are dropped."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator.control.sampling import Suggestion
from orchestrator.domain.sweeps import SweepState, TrialRecord
from orchestrator.messages_sweeps import ExtendRequest, SweepRequest
from orchestrator.spec.sweep import SweepSpec
from tests.integration.control.test_sight import Setting
from tests.support import wait_until
from tests.unit.sweeps import sweep


class Thinker:
    """A sampler that answers when it may, with the number of trials that it was told of."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.may_answer = threading.Semaphore(0)

    def ask(self, history: Sequence[TrialRecord], point: int) -> Suggestion:
        self.asked.release()
        assert self.may_answer.acquire(timeout=20)
        return Suggestion({"trainer.learning_rate": 0.001 * (1 + len(history))})


class Thinking(Setting):
    """A sweep whose sampler is thinking about its first point."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.thinker = Thinker()
        monkeypatch.setattr("orchestrator.control.controller.Search", lambda spec: self.thinker)
        super().__init__(folder)
        self.sweeps = self.controller.sweeps
        self.id = self.sweeps.submit(SweepRequest(spec=_spec("first"), key="first")).sweep_id
        self.round = threading.Thread(target=self.sweeps.look, daemon=True)
        self.round.start()
        assert self.thinker.asked.acquire(timeout=20)

    def answer(self) -> None:
        """Let it find what it was asked for, and the round end."""
        self.thinker.may_answer.release(100)
        self.round.join(20)
        assert not self.round.is_alive()

    def trials(self) -> list[TrialRecord]:
        with self.controller.ledger.read() as ledger:
            return ledger.sweeps.trials(self.id)

    def state(self) -> SweepState:
        with self.controller.ledger.read() as ledger:
            return ledger.sweeps.get(self.id).state


def _spec(name: str) -> SweepSpec:
    return sweep(name=name, parallel=2)


@pytest.fixture
def it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Thinking]:
    thinking = Thinking(tmp_path, monkeypatch)
    yield thinking
    thinking.thinker.may_answer.release(100)
    thinking.round.join(20)
    thinking.close()


def test_points_are_asked_for_one_after_the_other(it: Thinking) -> None:
    it.answer()
    assert [trial.params["trainer.learning_rate"] for trial in it.trials()] == [0.001, 0.002]


def test_pausing_does_not_wait_and_no_trial_begins(it: Thinking) -> None:
    assert it.sweeps.pause(it.id).state == SweepState.PAUSED
    it.answer()
    assert (it.trials(), it.state()) == ([], SweepState.PAUSED)
    it.sweeps.resume(it.id)
    it.sweeps.look()
    assert len(it.trials()) == 2


def test_cancelling_does_not_wait_and_no_trial_begins(it: Thinking) -> None:
    it.sweeps.cancel(it.id)
    it.answer()
    assert (it.trials(), it.state()) == ([], SweepState.CANCELLED)
    assert it.sweeps.look() is None


def test_a_larger_budget_counts_at_once(it: Thinking) -> None:
    it.sweeps.extend(it.id, ExtendRequest(parallel=3))
    it.answer()
    assert it.trials() == []  # the answer was to what is no longer asked
    it.sweeps.look()
    assert len(it.trials()) == 3


def test_another_sweep_is_accepted_meanwhile(it: Thinking) -> None:
    second = it.sweeps.submit(SweepRequest(spec=_spec("second"), key="second")).sweep_id
    it.answer()
    assert len(it.trials()) == 2
    it.sweeps.look()
    with it.controller.ledger.read() as ledger:
        assert len(ledger.sweeps.trials(second)) == 2


def test_a_sampler_that_fails_holds_up_no_other(it: Thinking, monkeypatch: pytest.MonkeyPatch) -> None:
    it.answer()
    third = it.sweeps.submit(SweepRequest(spec=_spec("third"), key="third")).sweep_id

    def fail(history: Sequence[TrialRecord], point: int) -> Suggestion:
        raise ArithmeticError("a matrix is not positive")

    monkeypatch.setattr(it.thinker, "ask", fail)
    assert it.sweeps.look() == 5.0
    monkeypatch.undo()
    wait_until(lambda: it.sweeps.look() is None, 5, lambda: str(it.sweeps))
    with it.controller.ledger.read() as ledger:
        assert len(ledger.sweeps.trials(third)) == 2
