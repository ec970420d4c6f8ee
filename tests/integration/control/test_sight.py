"""Machines that come and go, seen by a controller whose clock the tests turn. Agents are played by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.fleet import Fleet
from orchestrator.domain.liveness import FORGOTTEN_S, LEAVE_S, RETURNED_S
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.messages import SubmitRequest
from orchestrator.messages_agent import Beat, BeatReply, CheckpointNote, NodeNote, Order, Outcome
from orchestrator.spec.models import RunSpec, Variant
from tests.clocks import TurnedClock
from tests.integration.control.conftest import PaperGateway, build
from tests.support import wait_until
from tests.unit.records import NOW, node, spec


class Setting:
    """A controller without threads: it looks when :meth:`pass_` lets time go by."""

    def __init__(self, folder: Path) -> None:
        self.clock = TurnedClock(wall=NOW)
        self.gateway = PaperGateway()
        self.controller = build(folder, self.gateway, self.clock)
        self.fleet = [node("laptop"), node("gpu")]

    def close(self) -> None:
        self.controller.loop.launching.stop()
        self.controller.probes.close()

    def pass_(self, seconds: float = 0.0) -> None:
        self.clock.at += seconds
        nodes = tuple(map(self.controller.health.told, self.fleet))
        self.controller.watcher._fleet = Fleet(nodes, connected=True)
        self.controller.loop.tick()

    def submit(self, key: str = "k", **values: Any) -> str:
        request = SubmitRequest(spec=spec(pools=("laptop", "gpu"), **values), key=key)
        run_id = self.controller.service.submit(request).run_id
        self.pass_()
        self.launched(run_id, 1)
        return run_id

    def launched(self, run_id: str, number: int) -> None:
        wait_until(lambda: f"run-{run_id}-a{number}" in self.gateway.jobs, 5, lambda: str(self.gateway.jobs))

    def beat(self, run_id: str, number: int = 1, **values: Any) -> BeatReply:
        defaults: dict[str, Any] = {"phase": Phase.RUNNING, "pid": 1, "boot_id": "boot-1"}
        return self.controller.beats.take(run_id, number, Beat(**{**defaults, **values}))

    def end(self, run_id: str, number: int, reason: Reason) -> BeatReply:
        return self.beat(run_id, number, phase=Phase.ENDED, outcome=Outcome(reason=reason, message="m"))

    def run(self, run_id: str) -> RunRecord:
        with self.controller.ledger.read() as ledger:
            return ledger.run(run_id)

    def attempt(self, run_id: str, number: int = 1) -> AttemptRecord:
        with self.controller.ledger.read() as ledger:
            return ledger.attempt(run_id, number)

    def events(self, run_id: str) -> list[str]:
        with self.controller.ledger.read() as ledger:
            return [event.kind for event in ledger.events(run_id)]

    def sleeps(self, name: str = "laptop") -> None:
        """Ray declares it dead."""
        self.fleet = [replace(one, alive=one.alive and one.name != name) for one in self.fleet]

    def wakes(self, name: str = "laptop", **values: Any) -> None:
        """It is back as another Ray node."""
        rest = [one for one in self.fleet if one.name != name]
        self.fleet = [*rest, node(name, ray_id=f"ray-{name}-2", **values)]


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Setting]:
    with closing(Setting(tmp_path)) as setting:
        yield setting


def test_a_sleeping_machine_costs_nothing_and_its_run_goes_on(it: Setting) -> None:
    run_id = it.submit(migrate="never", retries=0)
    it.beat(run_id, step=10)
    before = it.run(run_id)
    it.sleeps()
    it.pass_(30)
    assert it.run(run_id).state == RunState.UNREACHABLE
    assert "cannot be reached" in it.run(run_id).message
    it.pass_(300)
    it.wakes()
    it.pass_(1)
    assert it.beat(run_id, step=11).order is Order.CONTINUE
    assert it.run(run_id) == before
    it.pass_()
    assert it.attempt(run_id).ray_id == "ray-laptop-2"
    assert it.events(run_id).count("unreachable") == it.events(run_id).count("back") == 1
    it.end(run_id, 1, Reason.COMPLETED)
    assert it.run(run_id).state == RunState.SUCCEEDED


def test_a_node_of_which_nothing_is_heard_is_away_and_gets_nothing_new(it: Setting) -> None:
    run_id = it.submit(migrate="never", placement=[Variant(pool="laptop")])
    it.beat(run_id)
    since = it.clock.now()
    it.pass_(9)
    it.pass_(5)
    _, laptop = it.controller.machines.nodes()
    assert (laptop.state, laptop.excluded, laptop.away_since) == ("ready", "", since)
    assert laptop.closed == "laptop cannot be reached"
    it.beat(run_id)
    it.pass_()
    it.pass_()
    _, laptop = it.controller.machines.nodes()
    assert (laptop.away_since, laptop.closed) == (None, "")


def test_it_goes_on_elsewhere_at_once_where_there_is_room(it: Setting) -> None:
    run_id = it.submit()
    it.beat(run_id)
    it.sleeps()
    it.pass_(6)
    assert it.run(run_id).state == RunState.UNREACHABLE
    it.pass_(1)
    it.launched(run_id, 2)
    assert (it.run(run_id).attempt, it.run(run_id).retries_used) == (2, 0)
    # The sleeper wakes: it is told to end, says that it was fenced, and changes nothing for its run.
    it.beat(run_id, 2)
    before = it.run(run_id)
    assert it.beat(run_id, 1).reason is Reason.FENCED
    assert not it.attempt(run_id, 1).ended
    it.end(run_id, 1, Reason.FENCED)
    assert it.attempt(run_id, 1).reason is Reason.FENCED
    assert it.run(run_id) == before


def test_after_its_grace_it_waits_for_a_place_and_may_still_come_back(it: Setting) -> None:
    run_id = it.submit(away=60, retries=0)
    it.beat(run_id, step=5)
    before = it.run(run_id)
    it.fleet = [node("laptop", alive=False)]
    it.pass_(59)
    it.pass_(0.5)
    assert it.run(run_id).state == RunState.UNREACHABLE
    it.pass_(1)
    assert (it.run(run_id).state, it.run(run_id).reason) == (RunState.QUEUED, Reason.AWAY)
    assert it.run(run_id).seconds_used == pytest.approx(60.5)
    assert it.beat(run_id, step=6).order is Order.CONTINUE
    assert it.run(run_id) == before
    assert not it.attempt(run_id).abandoned


def test_what_was_finished_while_it_was_away_counts(it: Setting) -> None:
    run_id = it.submit(away=60)
    it.beat(run_id)
    it.fleet = [node("laptop", alive=False)]
    it.pass_(10)
    it.pass_(60)
    assert it.run(run_id).state == RunState.QUEUED
    it.end(run_id, 1, Reason.COMPLETED)
    assert it.run(run_id).state == RunState.SUCCEEDED
    assert it.run(run_id).seconds_used == pytest.approx(70)


def test_what_a_quiet_attempt_holds_stays_held_until_it_is_known_to_have_ended(it: Setting) -> None:
    it.fleet = [node("laptop", cpus=1), node("gpu")]
    run_id = it.submit()
    it.beat(run_id)
    it.gateway.agents_alive = None
    it.pass_(LEAVE_S + 1)
    it.pass_(1)
    it.launched(run_id, 2)
    for second in (1, 1, 1):
        it.beat(run_id, 2)
        it.pass_(second)
    rooms = it.controller.scheduling.rooms(it.controller.watcher.fleet)
    assert rooms["ray-laptop"].cpus == 0
    assert "cannot be reached" in rooms["ray-laptop"].node.closed
    it.end(run_id, 1, Reason.FENCED)
    it.pass_(1)
    it.pass_(1)
    rooms = it.controller.scheduling.rooms(it.controller.watcher.fleet)
    assert (rooms["ray-laptop"].cpus, rooms["ray-laptop"].node.closed) == (1, "")


def test_a_machine_that_was_started_anew_has_no_attempt_any_more(it: Setting) -> None:
    run_id = it.submit(migrate="never", retries=0)
    it.beat(run_id)
    it.sleeps()
    it.pass_(30)
    it.wakes(boot_id="boot-1")
    it.pass_(1)
    assert not it.attempt(run_id).ended
    it.wakes(boot_id="boot-2")
    it.pass_(1)
    assert it.attempt(run_id).reason is Reason.NODE_LOST
    assert "started anew" in it.attempt(run_id).message
    it.launched(run_id, 2)
    assert it.run(run_id).retries_used == 0


def test_a_machine_that_is_back_without_its_agent(it: Setting) -> None:
    run_id = it.submit(migrate="never")
    it.beat(run_id)
    it.sleeps()
    it.pass_(30)
    it.wakes()
    it.pass_(1)
    it.pass_(RETURNED_S - 1)
    assert not it.attempt(run_id).ended
    it.pass_(2)
    assert it.attempt(run_id).reason is Reason.NODE_LOST


def test_a_machine_that_ray_has_lost_says_that_its_agent_is_gone(it: Setting) -> None:
    """Everything of a node was killed, but for what watches over it: nothing is waited for."""
    run_id = it.submit(migrate="never", retries=0)
    it.beat(run_id)
    it.sleeps()
    it.pass_(5)
    it.controller.machines.report("laptop", NodeNote(agents=[f"{run_id}-a1"], boot_id="boot-1"))
    it.pass_(5)
    assert not it.attempt(run_id).ended, "its agent lives"
    it.controller.machines.report("laptop", NodeNote(agents=[], boot_id="boot-1"))
    it.pass_(1)
    assert it.attempt(run_id).reason is Reason.NODE_LOST
    assert "the agent with it" in it.attempt(run_id).message
    it.wakes()
    it.pass_(1)
    it.launched(run_id, 2)
    assert it.run(run_id).retries_used == 0


def test_an_agent_that_its_actor_sees_at_work_has_its_whole_grace(it: Setting) -> None:
    run_id = it.submit(away=200)
    it.beat(run_id)
    answers, name = it.controller.probes._answers, f"run-{run_id}-a1"
    for _ in range(22):
        it.pass_(9)
        wait_until(lambda: name in answers and answers[name][0] == it.clock.at, 5)
        assert it.run(run_id).state == RunState.UNREACHABLE
    it.pass_(2)
    it.launched(run_id, 2)


def test_a_controller_that_slept_itself_blames_nobody(it: Setting) -> None:
    run_id = it.submit()
    it.beat(run_id)
    it.clock.at += 3600
    it.controller.live.pardon()
    it.pass_(1)
    assert it.run(run_id).state == RunState.RUNNING


def test_cancel_while_it_is_away_holds_when_it_is_back(it: Setting) -> None:
    run_id = it.submit(migrate="never")
    it.beat(run_id)
    it.sleeps()
    it.pass_(30)
    assert it.controller.service.cancel(run_id).state == RunState.CANCELLED
    it.pass_(1)
    reply = it.beat(run_id)
    assert (reply.order, reply.reason) == (Order.STOP, Reason.CANCELLED)
    it.end(run_id, 1, Reason.COMPLETED)
    assert it.run(run_id).state == RunState.CANCELLED
    assert it.attempt(run_id).ended


def test_a_cancel_that_the_agent_never_heard_comes_true(it: Setting) -> None:
    run_id = it.submit(migrate="never")
    it.beat(run_id)
    it.controller.service.cancel(run_id)
    it.sleeps()
    it.pass_(30)
    it.pass_(1)
    assert it.run(run_id).state == RunState.CANCELLED


def test_shutdown_leaves_waiting_and_ended_runs_alone(it: Setting) -> None:
    cancelled, waiting = it.submit(migrate="never"), it.submit("k2", away=40)
    it.beat(cancelled)
    it.beat(waiting)
    it.fleet = [replace(one, alive=False) for one in it.fleet]
    it.pass_(30)
    it.controller.service.cancel(cancelled)
    it.pass_(20)
    assert it.run(waiting).state == RunState.QUEUED
    before = it.run(cancelled), it.run(waiting)
    it.controller.service.shut_down()
    assert (it.run(cancelled), it.run(waiting)) == before


def test_nobody_waits_for_ever_for_the_end_of_an_attempt_that_was_left(it: Setting) -> None:
    run_id = it.submit()
    it.beat(run_id)
    it.sleeps()
    it.pass_(6)
    it.pass_(1)
    it.launched(run_id, 2)
    it.end(run_id, 2, Reason.COMPLETED)
    it.pass_(FORGOTTEN_S - 10)
    assert not it.attempt(run_id, 1).ended
    it.pass_(10)
    assert it.attempt(run_id, 1).ended
    assert it.run(run_id).state == RunState.SUCCEEDED


def test_three_runs_that_fail_on_a_node_close_it(it: Setting) -> None:
    it.fleet = [node("laptop", cpus=8)]
    failed = [it.submit(f"k{i}", retries=0) for i in range(3)]
    for run_id in failed:
        it.beat(run_id)
        it.end(run_id, 1, Reason.PROGRAM_FAILED)
        it.pass_(1)
    (marked,) = it.controller.watcher.fleet.nodes
    assert "3 different runs have failed there" in marked.excluded
    assert "node" in it.events(failed[-1])
    # The next controller knows it as well.
    again = build(it.controller.config.home.root, it.gateway, it.clock)
    assert again.health.told(it.fleet[0]).excluded == marked.excluded
    it.pass_(301)
    assert it.controller.health.told(it.fleet[0]).excluded == ""


def test_progress_refills_the_retries(it: Setting) -> None:
    run_id = it.submit(retries=1)
    for number in range(1, 5):
        note = CheckpointNote(step=10 * number, at=it.clock.now(), size=1, seconds=0.1)
        it.beat(run_id, number, first_step=10 * (number - 1), checkpoints=[note])
        it.end(run_id, number, Reason.PROGRAM_KILLED)
        assert (it.run(run_id).state, it.run(run_id).retries_used) == (RunState.QUEUED, 1)
        it.pass_(3)
        it.launched(run_id, number + 1)


def test_a_deadline_ends_a_run_that_waits_and_travels_as_seconds(it: Setting) -> None:
    deadline = it.clock.now() + timedelta(seconds=90)
    first = it.submit("first", deadline=deadline, max_duration=500, migrate="never")
    job = it.gateway.jobs[f"run-{first}-a1"]
    assert (job.seconds_left, job.limit) == (90.0, Reason.DEADLINE)
    it.beat(first)
    it.sleeps()
    it.fleet = it.fleet[:1]
    it.pass_(10)
    request = SubmitRequest(spec=spec(deadline=deadline), key="second")
    second = it.controller.service.submit(request).run_id
    it.pass_(79)
    assert it.run(second).state == RunState.QUEUED
    it.pass_(1)
    assert (it.run(second).state, it.run(second).reason) == (RunState.FAILED, Reason.DEADLINE)
    assert "its deadline has passed" in it.run(second).message
    assert it.run(first).state == RunState.UNREACHABLE  # its node ends it, and says how it ended


def test_gpu_hours_are_counted_and_end_a_run_that_waits(it: Setting) -> None:
    it.fleet = [node("gpu", gpus=2)]
    placement = [{"pool": "gpu", "gpus": 2}]
    run_id = it.submit(placement=placement, gpu_hours=1)
    job = it.gateway.jobs[f"run-{run_id}-a1"]
    assert (job.seconds_left, job.limit) == (1800.0, Reason.GPU_HOURS)
    it.beat(run_id)
    it.clock.at += 1800
    it.end(run_id, 1, Reason.MOVED)
    assert it.run(run_id).gpu_seconds_used == pytest.approx(3600)
    it.pass_()
    assert (it.run(run_id).state, it.run(run_id).reason) == (RunState.FAILED, Reason.GPU_HOURS)


def test_how_long_it_takes_is_known_from_runs_like_it(it: Setting) -> None:
    placement = [{"pool": "laptop"}, {"pool": "gpu"}]
    values = {"name": "x", "trainer": {"max_steps": 1000}, "placement": placement}
    like = RunSpec.model_validate(values)
    first = it.controller.service.submit(SubmitRequest(spec=like, key="1")).run_id
    it.pass_()
    it.launched(first, 1)
    service = it.controller.service
    assert service.detail(first).run.eta_s is None
    it.beat(first, device="cpu", device_name="Old CPU", first_step=0)
    it.beat(first, step=0)
    for step in (100, 200):
        it.clock.at += 50
        it.beat(first, step=step)
    assert service.detail(first).run.eta_s == pytest.approx(400)
    (grant,) = it.controller.board.grants()
    assert (grant.ends, grant.estimated) == (pytest.approx(it.clock.now().timestamp() + 400), True)
    it.end(first, 1, Reason.CANCELLED)
    it.fleet = []
    it.pass_()
    other = RunSpec.model_validate({**values, "trainer": {"max_steps": 500, "seed": 3}})
    second = service.submit(SubmitRequest(spec=other, key="2")).run_id
    it.pass_()
    assert service.detail(second).run.eta_s == pytest.approx(250)
    waiting = it.controller.board.queue.get(second)
    assert it.controller.scheduling._takes(waiting, waiting.shape.demands[0]) == pytest.approx(250)
    assert it.controller.scheduling._takes(waiting, waiting.shape.demands[1]) is None, "no such device yet"
    # The next controller has learned it from the ledger.
    again = build(it.controller.config.home.root, it.gateway, it.clock)
    assert again.service.detail(second).run.eta_s == pytest.approx(250)
    # An attempt that has not shown yet how fast it goes is expected to go as others did.
    it.fleet = [node("laptop")]
    it.pass_()
    it.launched(second, 1)
    it.beat(second, device="cpu", device_name="Old CPU", first_step=0, step=0)
    (grant,) = it.controller.board.grants()
    assert (grant.ends, grant.estimated) == (pytest.approx(it.clock.now().timestamp() + 250), True)
