"""What an agent makes of everything that goes wrong around it. Real agents, real programs, a file store."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.domain.states import Phase, Reason
from orchestrator.messages_agent import BeatReply, Order
from orchestrator.store.checkpoints import points
from orchestrator.store.records import data_prefix
from orchestrator.store.runlog import RunLog
from tests.integration.agent.bench import RUN, Bench
from tests.integration.agent.programs import train
from tests.support import wait_until


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    one = Bench(tmp_path)
    yield one
    one.close()


def stop(reason: Reason, grace_s: float = 20.0) -> BeatReply:
    return BeatReply(order=Order.STOP, reason=reason, grace_s=grace_s)


def test_a_moved_run_is_saved_and_goes_on_with_one_unbroken_curve(bench: Bench) -> None:
    spec = bench.script(train(steps=200, every=1000, pause=0.02))
    bench.start(spec)
    bench.wait_step(5)
    bench.controller.reply = stop(Reason.MOVED)
    first = bench.wait_outcome()
    assert (first.reason, first.exit_code) == (Reason.MOVED, 75)
    (saved,) = bench.steps()
    assert saved >= 6

    bench.controller.reply = BeatReply()
    before = [beat for beat in bench.controller.beats if beat.outcome is None]
    bench.controller.beats, bench.controller.log = before, b""
    bench.start(spec, attempt=2)
    second = bench.wait_outcome(attempt=2)

    assert second.reason is Reason.COMPLETED
    assert bench.controller.log.startswith(b"resumed at %d\n" % saved)
    assert [p.step for p in bench.controller.points if p.key == "train/loss"] == list(range(200))
    assert bench.controller.beats[-1].first_step == saved
    assert bench.records()[-1].parent is not None


def test_a_program_that_knows_no_rungs_is_asked_to_save_there(bench: Bench) -> None:
    spec = bench.script(train(steps=400, every=1000, pause=0.02))
    bench.start(spec, pause_at=30)
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code) == (Reason.RUNG, 75)
    (saved,) = bench.steps()
    assert 30 <= saved < 200


def test_a_program_that_knows_rungs_ends_there_by_itself(bench: Bench) -> None:
    code = train(steps=400, every=30, pause=0.02)
    at_rung = (
        "    if step == context.pause_step:\n        sys.exit(EXIT_SAVED)\n    if context.stop_requested"
    )
    bench.start(bench.script(code.replace("    if context.stop_requested", at_rung)), pause_at=30)
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code, bench.steps()) == (Reason.RUNG, 75, [30])


def test_every_point_before_a_checkpoint_is_in_the_store_once(bench: Bench) -> None:
    bench.start(bench.script(train(steps=40, every=7)))
    bench.wait_outcome()
    lines = b"".join(points(bench.store, RUN)).splitlines()
    assert len(lines) == len(set(lines)) == 2 * 40
    assert sum(b"train/loss" in line for line in lines) == 40


def test_a_killed_program_is_told_from_a_failed_one(bench: Bench) -> None:
    bench.start(bench.script(train(steps=1000, every=5, pause=0.02)))
    bench.wait_step(12)
    os.kill(bench.program_pid(), signal.SIGKILL)
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code) == (Reason.PROGRAM_KILLED, -9)
    assert "SIGKILL" in outcome.message
    assert "memory" in outcome.message
    assert max(bench.steps()) >= 10


def test_a_failure_carries_the_end_of_the_output(bench: Bench) -> None:
    bench.start(bench.script("print('warming up')\nraise ValueError('tensor of the wrong shape')"))
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code) == (Reason.PROGRAM_FAILED, 1)
    assert "ValueError: tensor of the wrong shape" in outcome.message


def test_a_user_error_carries_the_last_line(bench: Bench) -> None:
    code = "import sys\nprint('loading')\nprint('data.txt is missing', file=sys.stderr)\nsys.exit(78)"
    bench.start(bench.script(code))
    outcome = bench.wait_outcome()
    assert outcome.reason is Reason.USER_ERROR
    assert outcome.message == "data.txt is missing"


def test_a_program_that_cannot_be_started_is_a_user_error(bench: Bench) -> None:
    bench.start({"command": {"argv": ["no-such-program-here"]}})
    outcome = bench.wait_outcome()
    assert outcome.reason is Reason.USER_ERROR
    assert "no-such-program-here" in outcome.message


def test_kill_9_of_the_agent_ends_everything_it_started(bench: Bench) -> None:
    code = "import subprocess, sys, time\n"
    code += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[0]],"
    code += " start_new_session=True)\nprint('ready', flush=True)\ntime.sleep(600)\n"
    agent = bench.start(bench.script(code))
    wait_until(lambda: b"ready" in bench.controller.log, 30, bench.evidence)
    assert len(bench.processes()) == 3
    os.kill(agent.pid, signal.SIGKILL)
    wait_until(lambda: not bench.processes(), 5, bench.evidence)


def test_kill_9_of_the_keeper_ends_the_program(bench: Bench) -> None:
    child = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'input()', sys.argv[0]])\n"
    agent = bench.start(bench.script(child + train(steps=1000, every=5, pause=0.02)))
    bench.wait_step(6)
    (keeper,) = children(agent.pid)
    os.kill(keeper, signal.SIGKILL)
    outcome = bench.wait_outcome()
    assert outcome.reason is Reason.PROGRAM_KILLED
    assert not bench.processes()


def test_the_death_of_the_actor_saves_and_ends(bench: Bench) -> None:
    bench.start(bench.script(train(steps=1000, every=1000, pause=0.02)))
    bench.wait_step(3)
    bench.actor.kill()  # Nobody collects its status: it stays a zombie.
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code) == (Reason.ACTOR_LOST, 75)
    assert bench.steps() == [outcome.last_step]


def test_sigterm_to_the_agent_saves_and_ends(bench: Bench) -> None:
    agent = bench.start(bench.script(train(steps=1000, every=1000, pause=0.02)))
    bench.wait_step(3)
    os.kill(agent.pid, signal.SIGTERM)
    assert bench.wait_outcome().reason is Reason.SHUTDOWN
    assert len(bench.steps()) == 1


def test_nothing_waits_for_a_controller_that_is_away(bench: Bench) -> None:
    gate = bench.root / "gate"
    bench.start(bench.script(train(steps=150, every=40, pause=0.02, gate=gate)))
    bench.wait_step(10)
    bench.controller.stop()
    wait_until(lambda: b"step 149" in bench.folder().output.read_bytes(), 30, bench.evidence)
    bench.controller.start()
    gate.touch()
    outcome = bench.wait_outcome()

    assert outcome.reason is Reason.COMPLETED
    losses = [p for p in bench.controller.points if p.key == "train/loss"]
    assert [p.step for p in losses] == list(range(150))
    times = [p.value for p in bench.controller.points if p.key == "when"]
    assert max(b - a for a, b in pairwise(times)) < 2.0
    assert bench.controller.log == b"".join(b"step %d\n" % n for n in range(150)) + b"done\n"
    assert bench.steps()[-1] == 150
    assert bench.controller.committed == bench.steps()


def test_answers_that_are_lost_lose_nothing(bench: Bench) -> None:
    bench.controller.lost_answers = 3
    bench.start(bench.script(train(steps=30, every=10)))
    bench.wait_outcome()
    distinct = {(p.key, p.step, p.time_ms, p.value) for p in bench.controller.points}
    assert len(distinct) == 60
    assert bench.controller.log.count(b"\n") == 31


def test_an_outcome_that_nobody_takes_stays_on_the_node(bench: Bench) -> None:
    gate = bench.root / "gate"
    agent = bench.start(bench.script(train(steps=150, every=50, gate=gate)))
    bench.wait_step(2)
    bench.controller.stop()
    gate.touch()
    wait_until(lambda: bench.saved_outcome(), 30, bench.evidence)
    os.kill(agent.pid, signal.SIGTERM)
    wait_until(lambda: not agent.alive(), 30, bench.evidence)
    assert bench.saved_outcome()["reason"] == "completed"
    assert bench.saved_outcome()["acknowledged"] is False
    assert bench.folder().metrics.exists()
    assert not bench.folder().checkpoints.exists()


def test_a_newer_attempt_fences_this_one(bench: Bench) -> None:
    bench.start(bench.script(train(steps=1000, every=20, pause=0.02)))
    wait_until(lambda: bench.steps(), 30, bench.evidence)
    newer = RunLog(bench.store, RUN).claim(2, node="n2")
    have = bench.steps()
    outcome = bench.wait_outcome()
    assert outcome.reason is Reason.FENCED
    newer.check()
    assert bench.steps() == have


def test_a_newer_attempt_is_noticed_without_a_commit(bench: Bench) -> None:
    bench.start(bench.script(train(steps=10_000, every=10_000, pause=0.02)))
    bench.wait_step(3)
    RunLog(bench.store, RUN).claim(2, node="n2")
    outcome = bench.wait_outcome()
    assert outcome.reason is Reason.FENCED
    assert bench.steps() == []


def test_an_attempt_that_comes_too_late_runs_nothing(bench: Bench) -> None:
    RunLog(bench.store, RUN).claim(2, node="n2")
    bench.start(bench.script(train()))
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code) == (Reason.FENCED, None)
    assert bench.controller.log == b""


def test_a_controller_that_says_fenced_ends_the_program(bench: Bench) -> None:
    bench.start(bench.script(train(steps=1000, every=1000, pause=0.02)))
    bench.wait_step(3)
    bench.controller.refuse = (409, "fenced")
    wait_until(lambda: bench.saved_outcome(), 30, bench.evidence)
    assert bench.saved_outcome()["reason"] == "fenced"


def test_the_time_limit_holds_without_a_controller(bench: Bench) -> None:
    bench.start(bench.script(train(steps=1000, every=1000, pause=0.02)), seconds_left=2.5)
    bench.wait_step(2)
    bench.controller.stop()
    wait_until(lambda: bench.saved_outcome(), 30, bench.evidence)
    assert bench.saved_outcome()["reason"] == "time-limit"
    assert bench.saved_outcome()["exit_code"] == 75
    assert len(bench.steps()) == 1


def test_the_end_of_a_window_holds_without_a_controller_and_is_no_failure(bench: Bench) -> None:
    script = bench.script(train(steps=1000, every=1000, pause=0.02))
    bench.start(script, seconds_left=2.5, limit=Reason.WINDOW, window_grace_s=5.0)
    bench.wait_step(2)
    bench.controller.stop()
    wait_until(lambda: bench.saved_outcome(), 30, bench.evidence)
    assert bench.saved_outcome()["reason"] == "window"
    assert bench.saved_outcome()["exit_code"] == 75
    assert len(bench.steps()) == 1


def test_a_program_that_does_not_save_within_the_grace_of_a_window_is_killed(bench: Bench) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n"
    script = bench.script(code + "time.sleep(600)")
    bench.start(script, seconds_left=3.0, limit=Reason.WINDOW, window_grace_s=0.5)
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code) == (Reason.WINDOW, -9)


def test_nothing_is_started_where_the_window_has_closed(bench: Bench) -> None:
    script = bench.script(train(steps=1000, every=1000, pause=0.02))
    bench.start(script, seconds_left=0.0, limit=Reason.WINDOW)
    assert bench.wait_outcome().reason is Reason.WINDOW
    assert bench.steps() == []


def test_a_program_that_will_not_end_is_killed_after_the_grace(bench: Bench) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n"
    bench.start(bench.script(code + "time.sleep(600)"))
    wait_until(lambda: b"deaf" in bench.controller.log, 30, bench.evidence)
    bench.controller.reply = stop(Reason.MOVED, grace_s=0.5)
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code) == (Reason.MOVED, -9)
    assert "did not end within" in outcome.message


def test_cancel_wins_over_a_move(bench: Bench) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n"
    bench.start(bench.script(code + "time.sleep(600)"))
    wait_until(lambda: b"deaf" in bench.controller.log, 30, bench.evidence)
    bench.controller.reply = stop(Reason.MOVED, grace_s=60)
    wait_until(lambda: bench.controller.beats[-1].phase is Phase.SAVING, 30, bench.evidence)
    bench.controller.reply = stop(Reason.CANCELLED, grace_s=0.5)
    assert bench.wait_outcome().reason is Reason.CANCELLED


def test_a_shell_around_the_program_does_not_keep_it_from_saving(bench: Bench) -> None:
    python = bench.script(train(steps=1000, every=1000, pause=0.02))["command"]["argv"][1]
    bench.start({"command": {"argv": ["bash", "-c", f"{{python}} {python}; true"]}})
    bench.wait_step(3)
    bench.controller.reply = stop(Reason.MOVED)
    assert bench.wait_outcome().reason is Reason.MOVED
    assert len(bench.steps()) == 1


def test_an_order_to_stop_is_heard_while_the_store_is_away(bench: Bench) -> None:
    bench.store_path.rename(bench.root / "elsewhere")
    bench.controller.reply = stop(Reason.MOVED)
    bench.start(bench.script(train()))
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code) == (Reason.MOVED, None)
    assert not bench.processes()


def test_a_program_may_destroy_its_own_folders(bench: Bench) -> None:
    code = "import os, shutil, time\nfor name in ('CHECKPOINT_DIR', 'ARTIFACT_DIR'):\n"
    code += "    shutil.rmtree(os.environ['ORCH_' + name])\nos.mkdir(os.environ['ORCH_METRICS_FILE'])\n"
    bench.start(bench.script(code + "time.sleep(0.5)\nprint('fine')"))
    assert bench.wait_outcome().reason is Reason.COMPLETED
    assert bench.controller.log == b"fine\n"


def test_what_a_program_leaves_running_is_ended(bench: Bench) -> None:
    code = "import subprocess, sys\n"
    code += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[0]],"
    code += " start_new_session=True)\n"
    bench.start(bench.script(code))
    assert bench.wait_outcome().reason is Reason.COMPLETED
    assert not bench.processes()


def test_a_store_that_vanishes_and_comes_back_gets_the_last_checkpoint(bench: Bench) -> None:
    gate = bench.root / "gate"
    bench.start(bench.script(train(steps=150, every=20, pause=0.02, gate=gate)))
    wait_until(lambda: bench.steps(), 30, bench.evidence)
    away = bench.root / "elsewhere"
    bench.store_path.rename(away)
    gate.touch()
    wait_until(lambda: b"done" in bench.controller.log, 30, bench.evidence)
    wait_until(lambda: any("not stored yet" in e for e in bench.controller.events), 30, bench.evidence)
    away.rename(bench.store_path)
    assert bench.wait_outcome().reason is Reason.COMPLETED
    assert bench.steps()[-1] == 150


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_store_makes_room_by_what_dead_attempts_left(bench: Bench) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(bench.store_path)], check=True)
    try:
        bench = bench.with_store()
        RunLog(bench.store, RUN).claim(1, node="n0")
        left = data_prefix(RUN, 1, 5, uuid.uuid4())
        bench.store.put(f"{left}/state.bin", bytes(350_000))
        bench.start(bench.script(train(steps=20, every=20, pause=0.02, size=50_000)), attempt=2)
        assert bench.wait_outcome(attempt=2).reason is Reason.COMPLETED
        assert bench.steps() == [20]
        assert not any("not stored" in event for event in bench.controller.events)
    finally:
        subprocess.run(["umount", "-l", str(bench.store_path)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_store_is_said_and_training_goes_on(bench: Bench) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(bench.store_path)], check=True)
    try:
        bench = bench.with_store()
        (bench.store_path / "ballast").write_bytes(bytes(380_000))
        spec = bench.script(train(steps=120, every=20, pause=0.02, size=20_000))
        bench.start({**spec, "checkpoint": {"keep_last": 3, "keep_best": 0}})
        wait_until(lambda: any("not stored yet" in e for e in bench.controller.events), 30, bench.evidence)
        (bench.store_path / "ballast").unlink()
        outcome = bench.wait_outcome()
        assert outcome.reason is Reason.COMPLETED
        assert bench.steps()[-1] == 120
    finally:
        subprocess.run(["umount", "-l", str(bench.store_path)], check=True)


@pytest.mark.slow
def test_the_trainer_moves_without_a_trace_in_its_losses(bench: Bench) -> None:
    text = bench.root / "text.txt"
    text.write_text("It was the best of times, it was the worst of times, " * 200)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 16, "batch_size": 4, "max_steps": 1000}
    intervals = {"eval_interval": 100, "eval_batches": 2, "log_interval": 1, "sample_tokens": 20}
    spec = {
        "trainer": {"dataset": str(text), "dropout": 0.1, "warmup_steps": 5, **sizes, **intervals},
        "checkpoint": {"every_steps": 100_000},
    }
    bench.start(spec)
    bench.wait_step(60, timeout=60)
    bench.controller.reply = stop(Reason.MOVED)
    first = bench.wait_outcome(timeout=60)
    assert (first.reason, first.exit_code) == (Reason.MOVED, 75), bench.evidence()
    (moved_at,) = bench.steps()
    assert 60 <= moved_at < 1000

    bench.controller.reply = BeatReply()
    bench.controller.beats = [beat for beat in bench.controller.beats if beat.outcome is None]
    bench.start(spec, attempt=2)
    assert bench.wait_outcome(timeout=60, attempt=2).reason is Reason.COMPLETED
    assert bench.controller.beats[-1].first_step == moved_at
    assert "sample.txt" in bench.controller.artifacts

    moved = losses(bench)
    bench.controller.beats.clear()
    bench.start(spec, attempt=1, run_id="unbroken")
    wait_until(lambda: bench.controller.outcome, 60, bench.evidence)
    assert sorted(moved)[:1000] == list(range(1000))
    assert losses(bench) == moved


def losses(bench: Bench) -> dict[int, float]:
    return {p.step: p.value for p in bench.controller.points if p.key == "train/loss"}


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def test_a_stop_that_comes_after_a_crash_does_not_excuse_it(bench: Bench) -> None:
    """While the program's leftovers are being ended, the actor dies."""
    code = "import subprocess, sys\nignore = 'import signal, time; signal.signal(15, signal.SIG_IGN);'\n"
    code += "child = subprocess.Popen([sys.executable, '-c', ignore + 'print(1, flush=True); time.sleep(60)',"
    code += " sys.argv[0]], stdout=subprocess.PIPE)\nchild.stdout.readline()\nraise ValueError('bug')\n"
    bench.start(bench.script(code))
    wait_until(lambda: b"ValueError: bug" in bench.controller.log, 30, bench.evidence)
    bench.actor.kill()
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.exit_code) == (Reason.PROGRAM_FAILED, 1)
    assert not bench.processes()


def test_sigterm_during_the_last_upload_does_not_lose_a_finished_run(bench: Bench) -> None:
    gate = bench.root / "gate"
    agent = bench.start(bench.script(train(steps=150, every=1000, gate=gate)))
    bench.wait_step(2)
    away = bench.root / "elsewhere"
    bench.store_path.rename(away)
    gate.touch()
    wait_until(lambda: any("not stored yet" in e for e in bench.controller.events), 30, bench.evidence)
    os.kill(agent.pid, signal.SIGTERM)
    away.rename(bench.store_path)
    assert bench.wait_outcome().reason is Reason.COMPLETED
    assert bench.steps() == [150]
