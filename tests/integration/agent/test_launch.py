from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.agent.identity import ProcessId, boot_id, cpu_name, identify
from orchestrator.agent.launch import agent_environment, start_agent
from orchestrator.agent.workdir import WorkDir, prune
from orchestrator.errors import ConflictError, SetupError
from tests.integration.agent.bench import Bench
from tests.integration.agent.programs import train
from tests.support import wait_until

RAY = {
    "RAY_JOB_ID": "01000000",
    "RAY_AUTH_TOKEN": "secret",
    "SPT_NOENV": "1",
    "PYTHONBREAKPOINT": "ray.util.rpdb.set_trace",
    "OMP_NUM_THREADS": "1",
    "ORCH_SERVICE": "stack/worker",
}


def test_what_marks_a_ray_worker_does_not_reach_the_agent(tmp_path: Path) -> None:
    env = agent_environment({**RAY, "PATH": "/bin", "HOME": "/root"}, tmp_path, [])
    assert env == {
        "PATH": "/bin",
        "HOME": "/root",
        "ORCH_NODE_HOME": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def test_only_granted_gpus_are_visible(tmp_path: Path) -> None:
    assert agent_environment({"CUDA_VISIBLE_DEVICES": "0,1,2"}, tmp_path, ["1", "2"])[
        "CUDA_VISIBLE_DEVICES"
    ] == ("1,2")


def test_a_users_own_breakpoint_hook_stays(tmp_path: Path) -> None:
    assert "PYTHONBREAKPOINT" in agent_environment({"PYTHONBREAKPOINT": "ipdb.set_trace"}, tmp_path, [])


def test_a_process_is_told_from_its_successor() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert me.alive()
    assert not ProcessId(me.pid, me.create_time - 1).alive()
    assert identify(2**22 + 1) is None
    assert boot_id()
    assert cpu_name() is None or cpu_name()


def test_an_agent_is_nobodys_child_and_its_files_are_private(bench: Bench) -> None:
    agent = bench.start(bench.script(train(steps=1000, every=1000, pause=0.02)))
    assert agent.alive()
    stat = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[1]) != os.getpid()
    assert int(stat[3]) != os.getsid(0)
    assert bench.folder().root.stat().st_mode & 0o777 == 0o700
    assert json.loads(bench.folder().agent.read_text()) == {
        "pid": agent.pid,
        "create_time": agent.create_time,
    }
    assert os.getpriority(os.PRIO_PROCESS, agent.pid) == 0
    assert os.readlink(f"/proc/{agent.pid}/cwd") == str(bench.folder().root)


def test_an_attempt_is_started_once(bench: Bench) -> None:
    bench.start(bench.script("pass"))
    with pytest.raises(ConflictError):
        bench.start(bench.script("pass"))
    bench.wait_outcome()


def test_an_actor_that_does_not_exist_cannot_be_watched(bench: Bench) -> None:
    with pytest.raises(SetupError):
        start_agent(bench.job(bench.script("pass")), bench.home, [], 2**22 + 1)
    assert not bench.folder().root.exists()


def test_an_ended_attempt_leaves_only_evidence(bench: Bench) -> None:
    bench.start(bench.script(train()))
    bench.wait_outcome()
    names = {path.name for path in bench.folder().root.iterdir()}
    assert names == {"agent.err", "agent.json", "agent.log", "job.json", "launch.json", "outcome.json"}
    assert bench.saved_outcome()["acknowledged"] is True


def test_only_dead_attempts_are_pruned(tmp_path: Path) -> None:
    me = identify(os.getpid())
    assert me is not None
    for number in range(6):
        folder = WorkDir(tmp_path / f"r-a{number}")
        folder.root.mkdir()
        folder.checkpoints.mkdir()
        created = me.create_time if number == 0 else me.create_time - 1
        folder.agent.write_text(json.dumps({"pid": me.pid, "create_time": created}))
        os.utime(folder.agent, (number, number))
    (tmp_path / "starting").mkdir()
    prune(tmp_path, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"r-a0", "r-a4", "r-a5", "starting"}
    assert WorkDir(tmp_path / "r-a0").checkpoints.exists()
    assert not WorkDir(tmp_path / "r-a5").checkpoints.exists()


def test_a_new_attempt_frees_what_dead_agents_left(bench: Bench) -> None:
    agent = bench.start(bench.script(train(steps=1000, every=5, pause=0.02)))
    bench.wait_step(3)
    os.kill(agent.pid, 9)
    wait_until(lambda: not agent.alive(), 5)
    assert bench.folder(1).checkpoints.exists()
    bench.start(bench.script(train(), "other.py"), attempt=2)
    bench.wait_outcome(attempt=2)
    assert not bench.folder(1).checkpoints.exists()
    assert bench.folder(1).output.exists()
