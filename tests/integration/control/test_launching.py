"""Gangs from the recorded attempt to its end; agents are played by the tests, the cluster is on paper."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.agent.job import AgentJob
from orchestrator.api.app import create_app
from orchestrator.control import launching
from orchestrator.control.controller import Controller
from orchestrator.domain import liveness
from orchestrator.domain.records import AttemptRecord, Member, RunRecord
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.errors import ConflictError, OrchError, UnavailableError
from orchestrator.messages import GpuView, SubmitRequest
from orchestrator.messages_agent import NodeNote
from orchestrator.spec.models import Variant
from tests.integration.control.conftest import TOKEN, PaperGateway, build
from tests.support import wait_until
from tests.unit.records import node, spec

MEETING = {"host": "10.0.0.1", "port": 4000, "run": "r", "step": 50, "checkpoint": "c"}


@dataclass
class Choosy(PaperGateway):
    """Refuses to launch some actors."""

    refused: dict[str, OrchError] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def launch(self, name: str, ray_id: str, cpus: float, memory: int, job: AgentJob, **more: Any) -> bool:
        self.asked.append(name)
        if name in self.refused:
            raise self.refused[name]
        return super().launch(name, ray_id, cpus, memory, job, **more)


@pytest.fixture
def gateway() -> Choosy:
    nodes = [node("laptop", address="10.0.0.1"), node("gpu", address="10.0.0.2")]
    return Choosy(fleet=[replace(one, gpus=4) for one in nodes])


class Play:
    """A controller whose planner is the test."""

    def __init__(self, controller: Controller, gateway: Choosy) -> None:
        self.gateway = gateway
        self.run_id = ""
        self.use(controller)

    def use(self, controller: Controller) -> None:
        self.controller = controller
        controller.scheduling.draining = True
        gpus = [GpuView(index=index, name="card", memory=1000 + index) for index in range(4)]
        for name in ("laptop", "gpu"):
            controller.machines.report(name, NodeNote(gpus=gpus))
        self.api = TestClient(
            create_app(controller, TOKEN, "c"), headers={"Authorization": f"Bearer {TOKEN}"}
        )

    def place(self, nodes: Sequence[str] = ("laptop", "gpu"), **variant: Any) -> str:
        placement = [Variant(pool="laptop", ranks=len(nodes), **variant)]
        request = SubmitRequest(spec=spec(placement=placement, max_duration=60.0), key="k")
        self.run_id = self.controller.service.submit(request).run_id
        first, *others = [Member(f"ray-{name}", name) for name in nodes]
        run = replace(self.run, state=RunState.STARTING, attempt=1)
        attempt = AttemptRecord(
            run_id=run.id,
            number=1,
            ray_id=first.ray_id,
            node=first.node,
            variant_index=0,
            variant=placement[0],
            phase=Phase.LAUNCHING,
            created_at=run.created_at,
            members=tuple(others),
        )
        with self.controller.ledger.begin() as ledger:
            ledger.save_run(run)
            ledger.add_attempt(attempt)
        self.controller.loop.launching.launch(run, attempt)
        return self.run_id

    @property
    def run(self) -> RunRecord:
        with self.controller.ledger.read() as ledger:
            return ledger.run(self.run_id)

    @property
    def attempt(self) -> AttemptRecord:
        with self.controller.ledger.read() as ledger:
            return ledger.attempt(self.run_id, 1)

    def name(self, rank: int) -> str:
        return self.attempt.rank_name(rank)

    def launched(self, *ranks: int) -> None:
        wanted = {self.name(rank) for rank in ranks}
        wait_until(lambda: set(self.gateway.jobs) == wanted, 5, lambda: str(self.gateway.jobs))

    def beat(self, rank: int, phase: str = "running", **values: Any) -> dict[str, Any]:
        path = f"/v1/agent/runs/{self.run_id}/attempts/1/beat"
        answer = self.api.post(path, json={"phase": phase, "pid": 1, "rank": rank, **values})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def end(self, rank: int, reason: str, code: int | None = 1, **values: Any) -> dict[str, Any]:
        outcome = {"reason": reason, "exit_code": code, "message": values.pop("message", "")}
        return self.beat(rank, "ended", outcome=outcome, **values)

    def running(self) -> None:
        """Both ranks run."""
        self.launched(0, 1)
        self.beat(1, "claiming")
        self.beat(0, rendezvous=MEETING)


@pytest.fixture
def play(controller: Controller, gateway: Choosy) -> Iterator[Play]:
    one = Play(controller, gateway)
    with one.api:
        wait_until(lambda: controller.watcher.fleet.connected, 5)
        yield one


def test_every_rank_is_launched_with_its_place(play: Play) -> None:
    run_id = play.place(("laptop", "gpu", "laptop"), gpus=1)
    names = [f"run-{run_id}-a1", f"run-{run_id}-a1-r1", f"run-{run_id}-a1-r2"]
    wait_until(lambda: len(play.gateway.jobs) == 3, 5)
    jobs = [play.gateway.jobs[name] for name in names]
    assert [(job.rank, job.world, job.local_rank) for job in jobs] == [(0, 3, 0), (1, 3, 0), (2, 3, 1)]
    assert [(job.node, job.address) for job in jobs][:2] == [("laptop", "10.0.0.1"), ("gpu", "10.0.0.2")]
    assert [job.gpu_ids for job in jobs] == [(0, 1), (0,), (0, 1)]
    assert [job.gpu_total for job in jobs] == [1000, 1000, 1001]


def test_ranks_hear_where_to_meet_once_all_are_there(play: Play, tmp_path: Path, gateway: Choosy) -> None:
    play.place()
    play.launched(0, 1)
    assert play.beat(0, "restoring", rendezvous=MEETING)["rendezvous"] is None
    assert play.beat(1, "claiming")["rendezvous"] == {**MEETING, "path": False}
    assert play.beat(0, "restoring", rendezvous=MEETING)["rendezvous"] == {**MEETING, "path": False}
    assert play.attempt.phase is Phase.RESTORING, "rank 0 says what the attempt is doing"
    play.use(build(tmp_path, gateway))
    with play.api:
        assert play.beat(1, "claiming")["rendezvous"] is None, "another controller has to hear it first"
        assert play.beat(0, "restoring", rendezvous=MEETING)["rendezvous"] is not None
        assert gateway.asked.count(play.name(0)) == 1, "rank 0 was heard of"


def test_one_dead_rank_stops_the_others_and_is_the_reason(play: Play) -> None:
    play.place()
    play.running()
    assert play.beat(0)["order"] == "continue"
    play.end(1, "program-killed", -9, message="killed")
    assert play.beat(1)["order"] == "stop"
    reply = play.beat(0)
    assert (reply["order"], reply["reason"], reply["grace_s"]) == ("stop", "rank-lost", 10.0)
    assert not play.attempt.ended
    assert play.run.state is RunState.RUNNING
    assert play.gateway.killed == []
    play.end(0, "rank-lost", 76)
    ended = play.attempt
    assert (ended.phase, ended.reason, ended.exit_code) == (Phase.ENDED, Reason.PROGRAM_KILLED, -9)
    assert ended.message == "rank 1 on gpu: killed"
    (shown,) = play.api.get(f"/v1/runs/{play.run_id}").json()["attempts"]
    assert shown["node"] == "laptop, gpu"
    assert (play.run.state, play.run.retries_used) == (RunState.QUEUED, 1)
    wait_until(lambda: sorted(play.gateway.killed) == [play.name(0), play.name(1)], 5)


def test_the_first_to_fail_counts_whoever_tells_first(play: Play, tmp_path: Path, gateway: Choosy) -> None:
    play.place()
    play.running()
    play.end(0, "program-failed", 1, message="lost the others", outcome_age_s=1.0)
    play.use(build(tmp_path, gateway))  # what was told is remembered
    with play.api:
        play.end(1, "program-failed", 2, message="the cause", outcome_age_s=60.0)
        assert play.attempt.message == "rank 1 on gpu: the cause"


def test_a_repeated_end_changes_nothing(play: Play) -> None:
    play.place()
    play.running()
    for _ in range(3):
        play.end(1, "completed", 0)
    assert play.beat(0)["order"] == "continue", "it goes on while rank 0 trains"
    play.end(0, "completed", 0)
    play.end(0, "program-failed", 1)
    assert play.run.state is RunState.SUCCEEDED
    with play.controller.ledger.read() as ledger:
        kinds = [event.kind for event in ledger.events(play.run_id)]
    assert (kinds.count("rank-ended"), kinds.count("attempt-ended")) == (2, 1)


def test_an_order_reaches_all_and_all_save(play: Play) -> None:
    play.place()
    play.running()
    play.controller.service.shut_down()
    assert [play.beat(rank)["reason"] for rank in (0, 1)] == ["shutdown", "shutdown"]
    play.end(1, "shutdown", 75)
    assert play.beat(0)["grace_s"] == 60.0
    play.end(0, "shutdown", 75, step=120)
    assert (play.attempt.reason, play.run.retries_used) == (Reason.SHUTDOWN, 0)


def test_a_refused_rank_ends_all(play: Play, gateway: Choosy) -> None:
    gateway.launch_error = UnavailableError("not yet")
    run_id = play.place()
    gateway.refused[f"run-{run_id}-a1-r1"] = OrchError("no interpreter there")
    gateway.launch_error = None
    play.controller.loop.wake()
    wait_until(lambda: play.attempt.members[0].end, 5)
    play.launched(0)
    reply = play.beat(0, "restoring", rendezvous=MEETING)
    assert (reply["order"], reply["rendezvous"]) == ("stop", None)
    play.end(0, "rank-lost", None)
    assert (play.attempt.reason, play.attempt.message) == (
        Reason.NOT_STARTED,
        "rank 1 on gpu: no interpreter there",
    )
    assert play.run.retries_used == 1
    wait_until(lambda: {play.name(0), play.name(1)} <= set(play.gateway.killed), 5)


def test_cancelling_waits_for_no_rank_that_was_not_launched(play: Play, gateway: Choosy) -> None:
    gateway.launch_error = UnavailableError("the node is full")
    play.place()
    wait_until(lambda: len(gateway.asked) >= 2, 5)
    play.controller.service.cancel(play.run_id)
    wait_until(lambda: play.run.state is RunState.CANCELLED, 5)
    assert gateway.jobs == {}
    wait_until(lambda: {play.name(0), play.name(1)} <= set(gateway.killed), 5)


def test_the_next_controller_launches_only_what_is_missing(
    play: Play, tmp_path: Path, gateway: Choosy
) -> None:
    gateway.launch_error = UnavailableError("the controller dies in the middle")
    play.place()
    wait_until(lambda: len(gateway.asked) >= 2, 5)
    play.controller.loop.stop()
    gateway.jobs[play.name(0)] = play.gateway.jobs.get(play.name(0))  # type: ignore[assignment]
    gateway.asked.clear()
    gateway.launch_error = None
    play.use(build(tmp_path, gateway))
    with play.api:
        play.beat(0, "restoring", rendezvous=MEETING)
        wait_until(lambda: play.name(1) in gateway.jobs, 5)
        assert play.beat(1, "claiming")["rendezvous"] is not None
        play.controller.loop.tick()
        assert gateway.asked.count(play.name(1)) == 1


def test_an_agent_that_was_started_before_is_waited_for(play: Play, gateway: Choosy) -> None:
    gateway.launch_error = ConflictError("attempt 1 was started here before")
    play.place()
    wait_until(lambda: len(gateway.asked) == 2, 5)
    for _ in range(3):
        play.controller.loop.tick()
    assert len(gateway.asked) == 2, "it is not asked for again and again"
    assert not any(member.end for member in play.attempt.members)
    play.beat(1, "claiming")
    assert play.beat(0, "restoring", rendezvous=MEETING)["rendezvous"] is not None


def test_a_rank_is_launched_once_whoever_asks(play: Play, gateway: Choosy) -> None:
    play.place()
    launching = play.controller.loop.launching
    for _ in range(3):
        launching.launch(play.run, play.attempt)
    wait_until(lambda: len(gateway.asked) >= 2, 5)
    launching.launch(play.run, play.attempt)
    launching._pool.shutdown(wait=True)
    assert sorted(gateway.asked) == sorted(play.attempt.rank_name(rank) for rank in (0, 1))


def test_a_lost_node_ends_all(play: Play, gateway: Choosy, monkeypatch: pytest.MonkeyPatch) -> None:
    play.place()
    play.running()
    monkeypatch.setattr(liveness, "NODE_DEAD_S", 0.0)
    gateway.fleet = [one for one in gateway.fleet if one.name == "laptop"]
    wait_until(lambda: play.attempt.members[0].end, 10)
    assert play.beat(0)["reason"] == "rank-lost"
    play.end(0, "rank-lost", 76)
    assert (play.attempt.reason, play.run.retries_used) == (Reason.NODE_LOST, 0)


def test_only_rank_0_measures_and_each_has_its_own_output(play: Play) -> None:
    play.place()
    play.running()
    for rank in (0, 1):
        chunk = {"offset": 0, "data": base64.b64encode(b"rank %d" % rank).decode()}
        point = {"key": "loss", "step": rank, "time_ms": 1, "value": 2.0}
        play.beat(rank, log=chunk, points=[point], step=rank + 7, events=["slow"])
    for rank in (0, 1):
        page = play.api.get(f"/v1/runs/{play.run_id}/logs", params={"rank": rank}).json()
        assert base64.b64decode(page["data"]) == b"rank %d" % rank
    assert [p["step"] for p in play.api.get(f"/v1/runs/{play.run_id}/points?key=loss").json()] == [0]
    detail = play.api.get(f"/v1/runs/{play.run_id}").json()
    assert detail["run"]["step"] == 7
    assert {"slow", "rank 1: slow"} <= {event["text"] for event in detail["events"]}
    path = f"/v1/agent/runs/{play.run_id}/attempts/1/beat"
    assert play.api.post(path, json={"phase": "running", "pid": 1, "rank": 2}).status_code == 404


def test_actors_that_outlived_their_attempt_are_ended(
    play: Play, gateway: Choosy, monkeypatch: pytest.MonkeyPatch
) -> None:
    play.place()
    play.running()
    play.end(1, "completed", 0)
    play.end(0, "completed", 0)
    wait_until(lambda: len(gateway.killed) == 2, 5)
    gateway.killed.clear()
    job = gateway.jobs[play.name(0)]
    gateway.jobs |= {"run-unknown-a1": job, "somebody-elses": job}
    monkeypatch.setattr(launching, "SWEEP_S", 0.0)
    wait_until(lambda: {play.name(0), play.name(1)} <= set(gateway.killed), 5)
    assert not {"run-unknown-a1", "somebody-elses"} & set(gateway.killed)
