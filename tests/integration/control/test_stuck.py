"""What counts as stuck, seen by a controller whose clock the tests turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.stuck import LOOK_S, Stuck
from orchestrator.domain.notice import NoticeKind
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.messages import SubmitRequest
from orchestrator.notify.targets import Target, TargetFile
from orchestrator.spec.models import RunSpec, Variant
from tests.integration.control.conftest import build
from tests.integration.control.test_sight import Setting
from tests.unit.records import node, spec
from trainer.config import TrainerConfig


class Watched(Setting):
    """With a watcher that writes down what it tells."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.told: list[tuple[str, str, str, list[str]]] = []
        self.stuck = self.watcher()

    def watcher(self) -> Stuck:
        c = self.controller
        return Stuck(c.ledger, c.live, c.board, c.scheduling, c.watcher, self.clock, self._tell)

    def _tell(self, run: RunRecord, key: str, what: str, lines: list[str]) -> None:
        self.told.append((run.id, key, what, lines))

    def queue(self, key: str = "k", **values: Any) -> str:
        """A run that waits."""
        request = SubmitRequest(spec=spec(key, **values), key=key)
        run_id = self.controller.service.submit(request).run_id
        self.pass_()
        return run_id

    def submit_trainer(self) -> str:
        """A run of the built-in trainer, for 2,000 steps."""
        program = RunSpec(name="t", trainer=TrainerConfig(max_steps=2000), placement=[Variant(pool="laptop")])
        run_id = self.controller.service.submit(SubmitRequest(spec=program, key="t")).run_id
        self.pass_()
        self.launched(run_id, 1)
        return run_id

    def steps(self, run_id: str, step: int | None, seconds: float, every: float = 1.0) -> None:
        """Time goes by, and the agent says the same step all the while."""
        for _ in range(int(seconds / every)):
            self.clock.at += every
            self.beat(run_id, step=step)
        self.stuck.look()


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Watched]:
    setting = Watched(tmp_path)
    yield setting
    setting.controller.loop.launching.stop()
    setting.controller.probes.close()


class TestSteps:
    """An attempt that executes and does not get on."""

    def test_ten_minutes_without_a_step(self, it: Watched) -> None:
        run_id = it.submit()
        for step in range(30):
            it.steps(run_id, step, 1)
        it.steps(run_id, 29, 590)
        assert it.told == []
        it.steps(run_id, 29, 15)
        ((told, key, what, lines),) = it.told
        assert (told, key, what) == (run_id, "a1 step 29", "no step for 10 min 5 s")
        assert lines[0] == "at step 29, on laptop; a step took 1 s"
        it.steps(run_id, 29, 3600, every=10)
        assert len(it.told) == 1, "once per occurrence"
        it.steps(run_id, 30, 5)
        it.steps(run_id, 30, 3600, every=10)
        assert it.told[1][1] == "a1 step 30"

    def test_slow_steps_have_twenty_times_their_pace(self, it: Watched) -> None:
        run_id = it.submit()
        for step in range(3):
            it.steps(run_id, step, 120, every=10)
        it.steps(run_id, 2, 2200, every=10)
        assert it.told == []
        it.steps(run_id, 2, 200, every=10)
        assert it.told[0][2] == "no step for 41 min 50 s"

    def test_a_command_that_tells_of_no_steps_is_never_stuck(self, it: Watched) -> None:
        run_id = it.submit()
        it.steps(run_id, None, 7200, every=10)
        assert it.told == []

    def test_the_trainer_has_to_make_its_first_step(self, it: Watched) -> None:
        run_id = it.submit_trainer()
        it.steps(run_id, None, 650, every=10)
        assert "it has not made a step yet" in it.told[0][3][0]

    def test_the_last_step_is_no_standstill(self, it: Watched) -> None:
        run_id = it.submit_trainer()
        it.steps(run_id, 2000, 3600, every=10)
        it.steps(run_id, None, 10)
        assert it.told == []

    @pytest.mark.parametrize("phase", [Phase.RESTORING, Phase.SAVING])
    def test_other_phases_make_no_steps(self, it: Watched, phase: Phase) -> None:
        run_id = it.submit()
        it.beat(run_id, step=5)
        it.beat(run_id, step=5, phase=phase)
        for _ in range(80):
            it.clock.at += 10
            it.beat(run_id, step=5, phase=phase)
        it.stuck.look()
        assert it.told == []

    def test_time_asleep_of_the_controller_does_not_count(self, it: Watched) -> None:
        run_id = it.submit()
        it.steps(run_id, 5, 300, every=10)
        it.clock.at += 10_000
        it.controller.live.pardon()
        it.steps(run_id, 5, 300, every=10)
        assert it.told == []

    def test_a_new_controller_counts_anew_and_the_ledger_knows(self, it: Watched, tmp_path: Path) -> None:
        TargetFile(tmp_path / "notify.yaml").add(Target(name="a", url="json://127.0.0.1:9/"))
        run_id = it.submit()
        it.steps(run_id, 5, 700, every=10)
        for _ in range(2):
            it.controller._tell_stuck(it.run(run_id), *it.told[0][1:])
        with it.controller.ledger.read() as tx:
            (notice,) = tx.notices.unspread()
        assert (notice.kind, notice.title) == (NoticeKind.STUCK, "job: stuck, no step for 11 min 30 s")
        again = build(tmp_path, it.gateway, it.clock)
        assert not again.notifier.tell(NoticeKind.STUCK, run_id, "again", key="a1 step 5", name="job")
        again.notifier.stop()
        again.probes.close()
        again.ledger.close()


class TestWaiting:
    """A run that waits beside a machine that does nothing."""

    def test_nothing_starts_on_a_free_machine(self, it: Watched) -> None:
        it.pass_()
        greedy = it.queue(placement=[Variant(pool="laptop", cpus=64)])
        assert it.stuck.look() == LOOK_S
        it.clock.at += 599
        it.stuck.look()
        assert it.told == []
        it.clock.at += 16
        it.stuck.look()
        ((told, key, what, lines),) = it.told
        assert (told, key) == (greedy, "a0 waits")
        assert what == "waits for 10 min 15 s beside a machine that does nothing"
        assert "it has 2 CPUs, 64 wanted" in lines[0]

    def test_waiting_for_others_is_no_standstill(self, it: Watched) -> None:
        busy = it.submit(placement=[Variant(pool="laptop", cpus=2)])
        it.queue("next", placement=[Variant(pool="laptop", cpus=2)])
        it.fleet = [one for one in it.fleet if one.name == "laptop"]
        for _ in range(100):
            it.clock.at += 10
            it.beat(busy, step=int(it.clock.at))
            it.pass_()
            it.stuck.look()
        assert it.told == []

    @pytest.mark.parametrize("change", [{"alive": False}, {"draining": True}])
    def test_machines_that_are_closed_or_gone_are_not_there(
        self, it: Watched, change: dict[str, bool]
    ) -> None:
        it.fleet = [node("laptop", **change)]
        it.queue(placement=[Variant(pool="laptop", cpus=64)])
        for _ in range(80):
            it.clock.at += 10
            it.pass_()
            it.stuck.look()
        assert it.told == []

    def test_who_wants_to_wait_is_not_stuck(self, it: Watched) -> None:
        greedy = Variant(pool="laptop", cpus=64)
        held = it.queue("held", placement=[greedy])
        it.controller.service.hold(held, held=True)
        it.queue("best", placement=[greedy, Variant(pool="laptop", cpus=65)], start="best", wait=7000.0)
        for _ in range(80):
            it.clock.at += 10
            it.stuck.look()
        assert it.told == []
        it.controller.service.hold(held, held=False)
        it.clock.at += 6500
        it.stuck.look()
        it.clock.at += 620
        it.stuck.look()
        assert {one[0] for one in it.told} >= {held}

    def test_the_count_begins_anew_when_it_was_otherwise(self, it: Watched) -> None:
        it.queue(placement=[Variant(pool="laptop", cpus=64)])
        it.pass_()
        it.stuck.look()
        it.clock.at += 500
        everybody, it.fleet = it.fleet, []
        it.pass_()
        it.stuck.look()
        it.fleet = everybody
        it.pass_()
        it.stuck.look()
        it.clock.at += 500
        it.stuck.look()
        assert it.told == []


class TestUnreachable:
    """A machine that is away past its grace."""

    def test_a_run_that_fits_nowhere_else(self, it: Watched) -> None:
        run_id = it.submit(placement=[Variant(pool="laptop")], away=300.0)
        it.beat(run_id, step=10)
        it.sleeps()
        for _ in range(30):
            it.pass_(9)
            it.stuck.look()
        assert it.run(run_id).state == RunState.UNREACHABLE
        assert it.told == []
        for _ in range(20):
            it.pass_(9)
            it.stuck.look()
        assert it.run(run_id).state == RunState.QUEUED
        ((told, key, what, lines),) = it.told
        assert (told, key, what) == (run_id, "a1 away", "laptop cannot be reached")
        assert "the run waits until it is back, or for another machine" in lines[0]

    def test_a_run_that_goes_on_elsewhere(self, it: Watched) -> None:
        run_id = it.submit()
        it.beat(run_id, step=10)
        it.sleeps()
        for _ in range(10):
            it.pass_(9)
            it.stuck.look()
        it.launched(run_id, 2)
        for _ in range(60):
            it.beat(run_id, 2, step=int(it.clock.at))
            it.pass_(10)
            it.stuck.look()
        assert it.told == []


def test_nothing_to_look_at(it: Watched) -> None:
    run_id = it.submit()
    it.beat(run_id, step=1)
    assert it.stuck.look() == LOOK_S
    it.end(run_id, 1, Reason.COMPLETED)
    assert it.stuck.look() > LOOK_S
