"""When a service is started, waited for, and started again; against a machine that is only pretended."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from orchestrator.agent.identity import ProcessId
from orchestrator.cluster.keeper import BACKOFF_S, Keeper
from orchestrator.cluster.processes import Member
from orchestrator.cluster.services import Service
from orchestrator.cluster.state import Process, ServicePhase
from orchestrator.errors import SetupError
from tests.clocks import TurnedClock


class FakeMachine:
    """Starts nothing; the test says what lives and what answers."""

    def __init__(self, folder: Path) -> None:
        self.clock = TurnedClock()
        self.folder = folder
        self.started: list[str] = []
        self.living: dict[int, str] = {}
        self.exits: dict[int, int] = {}
        self.ended: list[int] = []
        self.killed: list[int] = []
        self.busy: str | None = None
        self.own_port = True
        self.broken = False

    def start(self, service: Service) -> Process:
        if self.broken:
            raise SetupError("no room")
        pid = 100 * (len(self.started) + 1)
        self.started.append(service.name)
        self.living[pid] = "launcher"
        return Process(pid=pid, create_time=1.0)

    def exit_code(self, process: Process) -> int | None:
        return self.exits.get(process.pid)

    def alive(self, process: Process) -> bool:
        return process.pid in self.living

    def members(self, leader: Process) -> list[Member]:
        here = {pid: name for pid, name in self.living.items() if pid // 100 == leader.pid // 100}
        return [Member(ProcessId(pid, 1.0), name, name) for pid, name in here.items()]

    def end(self, leader: Process) -> None:
        self.ended.append(leader.pid)
        self.living = {pid: name for pid, name in self.living.items() if pid // 100 != leader.pid // 100}

    def port_problem(self, host: str, port: int) -> str | None:
        return self.busy

    def listens(self, leader: Process, port: int) -> bool:
        return self.own_port

    def kill(self, member: Member) -> None:
        self.killed.append(member.pid)

    def log_file(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def finish(self, pid: int, code: int) -> None:
        del self.living[pid]
        self.exits[pid] = code


class Answer:
    """A probe that answers as the test says."""

    def __init__(self, value: bool) -> None:
        self.value = value
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.value


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def run(keeper: Keeper, machine: FakeMachine, seconds: float) -> None:
    for _ in range(round(seconds / 0.1)):
        keeper.tick()
        machine.clock.sleep(0.1)


def web_service(probe: Answer, **changes: object) -> Service:
    service = Service("web", ("serve",), probe=probe, listens=("127.0.0.1", 80), start_s=30.0, silent_s=120.0)
    return dataclasses.replace(service, **changes)


def daemon_service(**changes: object) -> Service:
    return dataclasses.replace(Service("node-a", ("ray", "start"), daemons=("raylet",)), **changes)


def test_it_is_ready_when_it_answers(machine: FakeMachine) -> None:
    probe = Answer(False)
    keeper = Keeper(web_service(probe), machine)
    run(keeper, machine, 2.0)
    assert keeper.record.phase is ServicePhase.STARTING
    probe.value = True
    run(keeper, machine, 1.0)
    assert keeper.record.phase is ServicePhase.READY
    assert keeper.record.start_s == pytest.approx(2.0, abs=0.4)
    assert machine.started == ["web"]


def test_each_start_notes_which_program_it_runs(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(web_service(Answer(True), ours=True), machine)
    for version in ("one", "two"):
        monkeypatch.setattr("orchestrator.cluster.keeper.program_digest", lambda version=version: version)
        run(keeper, machine, 1.0)
        assert (keeper.record.phase, keeper.record.program) == (ServicePhase.READY, version)
        keeper.replace("an update")
    ray = Keeper(web_service(Answer(True)), machine)
    run(ray, machine, 1.0)
    assert (ray.record.phase, ray.record.program) == (ServicePhase.READY, "")


def test_a_stranger_on_the_port_does_not_count_as_an_answer(machine: FakeMachine) -> None:
    machine.own_port = False
    keeper = Keeper(web_service(Answer(True)), machine)
    run(keeper, machine, 5.0)
    assert keeper.record.phase is ServicePhase.STARTING


def test_a_taken_port_is_named_and_nothing_is_started(machine: FakeMachine) -> None:
    machine.busy = "port 80 is taken by process 7 (nginx)"
    keeper = Keeper(web_service(Answer(True)), machine)
    keeper.tick()
    assert machine.started == []
    assert keeper.record.message == "port 80 is taken by process 7 (nginx)"
    assert keeper.record.failures == 1


def test_it_waits_for_what_it_needs(machine: FakeMachine) -> None:
    need = Answer(False)
    keeper = Keeper(daemon_service(needs=need), machine)
    run(keeper, machine, 5.0)
    assert machine.started == []
    assert keeper.record.failures == 0, "waiting is not failing"
    assert need.asked <= 11, "asked twice a second at most"
    need.value = True
    run(keeper, machine, 1.0)
    assert machine.started == ["node-a"]


def test_daemons_are_the_service_once_their_launcher_has_ended_well(machine: FakeMachine) -> None:
    keeper = Keeper(daemon_service(), machine)
    run(keeper, machine, 1.0)
    machine.living[101] = "raylet"
    run(keeper, machine, 1.0)
    assert keeper.record.phase is ServicePhase.STARTING, "the launcher is not done yet"
    machine.finish(100, 0)
    run(keeper, machine, 0.5)
    assert keeper.record.phase is ServicePhase.READY
    assert [process.pid for process in keeper.record.vital] == [101]


def test_a_launcher_that_fails_is_told_with_the_end_of_its_log(machine: FakeMachine) -> None:
    machine.log_file("node-a").write_text("noise\nno such host\n")
    keeper = Keeper(daemon_service(), machine)
    run(keeper, machine, 0.3)
    machine.finish(100, 1)
    keeper.tick()
    assert keeper.record.phase is ServicePhase.WAITING
    assert "ended with 1" in keeper.record.message
    assert "no such host" in keeper.record.message
    assert keeper.record.failures == 1


def test_a_launcher_that_ends_well_without_its_daemon_has_failed(machine: FakeMachine) -> None:
    keeper = Keeper(daemon_service(), machine)
    run(keeper, machine, 0.3)
    machine.finish(100, 0)
    keeper.tick()
    assert keeper.record.phase is ServicePhase.WAITING
    assert "raylet" in keeper.record.message


def test_a_daemon_that_dies_takes_its_session_with_it_and_is_replaced(machine: FakeMachine) -> None:
    keeper = _ready_daemon(machine)
    machine.living[102] = "ray::worker"
    del machine.living[101]
    keeper.tick()
    assert machine.ended == [100]
    assert 102 not in machine.living
    run(keeper, machine, 1.0)
    assert machine.started == ["node-a", "node-a"]
    assert keeper.record.restarts == 1


def test_useless_processes_are_ended_once_it_is_ready(machine: FakeMachine) -> None:
    keeper = Keeper(daemon_service(unwanted="dashboard"), machine)
    run(keeper, machine, 0.3)
    machine.living |= {101: "raylet", 103: "dashboard"}
    machine.finish(100, 0)
    run(keeper, machine, 0.3)
    assert machine.killed == [103]


def test_it_is_started_again_when_it_never_answers(machine: FakeMachine) -> None:
    keeper = Keeper(web_service(Answer(False)), machine)
    run(keeper, machine, 32.0)
    assert machine.ended == [100]
    assert machine.started == ["web", "web"]
    assert keeper.record.failures == 1


def test_silence_is_borne_for_a_long_time_and_then_ends_it(machine: FakeMachine) -> None:
    probe = Answer(True)
    keeper = Keeper(web_service(probe), machine)
    run(keeper, machine, 1.0)
    probe.value = False
    run(keeper, machine, 90.0)
    assert keeper.record.phase is ServicePhase.SILENT
    assert machine.ended == [], "a stopped or busy server is not killed for 90 s"
    probe.value = True
    run(keeper, machine, 6.0)
    assert keeper.record.phase is ServicePhase.READY
    probe.value = False
    run(keeper, machine, 130.0)
    assert machine.ended == [100]


def test_a_ready_service_is_asked_every_ten_seconds(machine: FakeMachine) -> None:
    probe = Answer(True)
    keeper = Keeper(web_service(probe), machine)
    run(keeper, machine, 1.0)
    before = probe.asked
    run(keeper, machine, 100.0)
    assert probe.asked - before in range(9, 12)


def test_pauses_grow_while_it_fails_and_begin_anew_after_a_steady_time(machine: FakeMachine) -> None:
    keeper = Keeper(daemon_service(), machine)
    starts = []
    for number in range(1, 5):
        while len(machine.started) < number:
            run(keeper, machine, 0.1)
        starts.append(machine.clock.at)
        if number < 4:
            machine.finish(number * 100, 1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert gaps == pytest.approx(BACKOFF_S[:3], abs=0.25)
    keeper = _ready_daemon(machine, keeper)
    run(keeper, machine, 70.0)
    died_at, count = machine.clock.at, len(machine.started)
    machine.living.clear()
    while len(machine.started) == count:
        run(keeper, machine, 0.1)
    assert machine.clock.at - died_at == pytest.approx(BACKOFF_S[0], abs=0.25)


def test_a_service_that_crashes_soon_after_it_was_ready_still_backs_off(machine: FakeMachine) -> None:
    keeper = Keeper(daemon_service(), machine)
    for _ in range(4):
        keeper = _ready_daemon(machine, keeper)
        machine.living.clear()
        keeper.tick()
    count, began = len(machine.started), machine.clock.at
    while len(machine.started) == count:
        run(keeper, machine, 0.1)
    assert machine.clock.at - began > BACKOFF_S[2]


def test_a_start_that_is_impossible_is_a_failure_with_words(machine: FakeMachine) -> None:
    machine.broken = True
    keeper = Keeper(daemon_service(), machine)
    keeper.tick()
    assert keeper.record.message == "cannot be started: no room"
    assert keeper.record.phase is ServicePhase.WAITING


def test_other_settings_restart_it_at_once(machine: FakeMachine) -> None:
    keeper = _ready_daemon(machine)
    changed = Keeper(daemon_service(env={"A": "1"}), machine, keeper.record)
    changed.tick()
    assert machine.ended == [100]
    assert machine.started == ["node-a", "node-a"]
    assert changed.record.restarts == 0, "it did not fail"


def test_the_next_supervisor_goes_on_with_what_runs(machine: FakeMachine) -> None:
    keeper = _ready_daemon(machine)
    adopted = Keeper(daemon_service(), machine, keeper.record)
    run(adopted, machine, 5.0)
    assert machine.started == ["node-a"]
    assert machine.ended == []
    assert adopted.record.phase is ServicePhase.READY


def _ready_daemon(machine: FakeMachine, keeper: Keeper | None = None) -> Keeper:
    keeper = keeper or Keeper(daemon_service(), machine)
    while keeper.record.leader is None:
        run(keeper, machine, 0.1)
    pid = keeper.record.leader.pid
    machine.living[pid + 1] = "raylet"
    machine.finish(pid, 0)
    run(keeper, machine, 0.3)
    assert keeper.record.phase is ServicePhase.READY
    return keeper
