"""Agents of the ranks of a gang: real processes, a controller that the test plays."""

from __future__ import annotations

import json
import shutil
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.agent.launch import attempt_dir
from orchestrator.agent.rank import Crew, interface_of
from orchestrator.agent.reporter import Reporter
from orchestrator.contract import MARK_FILE
from orchestrator.domain.states import Reason
from orchestrator.messages_agent import BeatReply, Order, Outcome, Rendezvous
from orchestrator.store.checkpoints import CheckpointRecord, CheckpointWriter
from orchestrator.store.runlog import RunLog
from tests.integration.agent.bench import RUN, Bench
from tests.integration.agent.programs import train
from tests.support import wait_until

SHOW = """
import json, os
from orchestrator.contract import MARK_FILE, run_context
names = "RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT ORCH_METRICS_FILE GLOO_SOCKET_IFNAME"
told = {name: os.environ.get(name) for name in names.split()}
context = run_context()
context.log(1, {"loss": 1.0})
if context.restore_dir:
    told["step"] = json.loads((context.restore_dir / MARK_FILE).read_text())["step"]
folder = context.checkpoint_dir / "writing"
folder.mkdir()
(folder / "state").write_text("mine")
context.publish(folder, 99)
(context.artifact_dir / "file").write_text("mine")
print(json.dumps(told))
"""


def meet(bench: Bench, **values: Any) -> Rendezvous:
    meeting = Rendezvous(host="127.0.0.1", port=4001, **values)
    bench.controller.reply = BeatReply(rendezvous=meeting)
    return meeting


def claimed(bench: Bench, attempt: int = 1) -> CheckpointWriter:
    """What the agent of rank 0 has done before."""
    return CheckpointWriter(bench.store, RunLog(bench.store, RUN).claim(attempt, node="n0"))


def commit(bench: Bench, writer: CheckpointWriter, step: int) -> CheckpointRecord:
    folder = bench.root / f"made-{step}"
    folder.mkdir()
    (folder / MARK_FILE).write_text(json.dumps({"step": step}))
    record = writer.commit(folder, step, metrics={}, device="cpu", node="n0")
    shutil.rmtree(folder)
    return record


def outcome(bench: Bench) -> Outcome:
    found = wait_until(lambda: bench.controller.outcome, 30, bench.evidence)
    wait_until(lambda: not bench.agents[-1].alive(), 10, bench.evidence)
    return found


def begun(bench: Bench, rank: int) -> bool:
    return (attempt_dir(bench.home, RUN, 1, rank) / "output.log").exists()


def test_rank_0_says_where_to_meet_and_waits_for_the_others(bench: Bench) -> None:
    bench.start(bench.script(SHOW), rank=0, world=2, address="127.0.0.1")
    heard = wait_until(
        lambda: next((b.rendezvous for b in bench.controller.beats if b.rendezvous), None), 20, bench.evidence
    )
    assert (heard.host, heard.run, heard.path) == ("127.0.0.1", None, False)
    count = len(bench.controller.beats)
    wait_until(lambda: len(bench.controller.beats) > count + 3, 10)
    assert not begun(bench, 0)
    bench.controller.reply = BeatReply(rendezvous=heard)
    assert outcome(bench).reason is Reason.COMPLETED
    told = json.loads(bench.controller.log)
    assert (told["RANK"], told["WORLD_SIZE"], told["MASTER_PORT"]) == ("0", "2", str(heard.port))
    assert told["GLOO_SOCKET_IFNAME"] == "lo"
    assert bench.steps() == [99]
    assert bench.controller.last_step == 1


def test_rank_0_names_the_checkpoint_that_it_goes_on_from(bench: Bench) -> None:
    record = commit(bench, claimed(bench), 50)
    bench.start(bench.script(SHOW), attempt=2, rank=0, world=2, address="10.1.1.1")
    heard = wait_until(
        lambda: next((b.rendezvous for b in bench.controller.beats if b.rendezvous), None),
        20,
        lambda: bench.evidence(2),
    )
    assert (heard.host, heard.run, heard.step, heard.checkpoint) == ("10.1.1.1", RUN, 50, str(record.id))


def test_another_rank_starts_with_that_checkpoint_and_commits_nothing(bench: Bench) -> None:
    writer = claimed(bench)
    record = commit(bench, writer, 50)
    commit(bench, writer, 60)
    bench.start(bench.script(SHOW), rank=1, world=2, local_rank=1, address="127.0.0.2")
    wait_until(lambda: len(bench.controller.beats) > 4, 20, bench.evidence)
    assert {beat.rank for beat in bench.controller.beats} == {1}
    assert not begun(bench, 1)
    meet(bench, run=RUN, step=50, checkpoint=str(record.id))
    assert outcome(bench).reason is Reason.COMPLETED
    told = json.loads(bench.controller.log)
    assert (told["RANK"], told["LOCAL_RANK"], told["MASTER_ADDR"]) == ("1", "1", "127.0.0.1")
    assert told["step"] == 50
    assert told["ORCH_METRICS_FILE"] is None
    assert bench.steps() == [50, 60]
    assert bench.controller.points == []
    assert bench.controller.artifacts == {}


def test_another_rank_may_not_start_for_an_attempt_that_was_replaced(bench: Bench) -> None:
    claimed(bench, 2)
    meet(bench)
    bench.start(bench.script(SHOW), rank=1, world=2)
    assert outcome(bench).reason is Reason.FENCED
    assert not begun(bench, 1)


def test_another_rank_refuses_another_checkpoint(bench: Bench) -> None:
    commit(bench, claimed(bench), 50)
    meet(bench, run=RUN, step=50, checkpoint="of somebody else")
    bench.start(bench.script(SHOW), rank=1, world=2)
    found = outcome(bench)
    assert (found.reason, found.message) == (
        Reason.NOT_STARTED,
        "rank 0 goes on from another checkpoint of step 50",
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_hears_the_order_to_stop(bench: Bench, rank: int) -> None:
    bench.start(bench.script(SHOW), rank=rank, world=2)
    wait_until(lambda: len(bench.controller.beats) > 4, 20, bench.evidence)
    bench.controller.reply = BeatReply(order=Order.STOP, reason=Reason.RANK_LOST, grace_s=1.0)
    assert outcome(bench).reason is Reason.RANK_LOST
    assert not begun(bench, rank)


def test_a_controller_that_starts_anew_does_not_unmake_a_meeting(bench: Bench) -> None:
    reporter = SimpleNamespace(reply=None, hurried=True)
    crew = Crew(bench.job(bench.script(SHOW), rank=1, world=2), cast(Reporter, reporter))
    assert not crew.complete
    meet(bench)
    reporter.reply = bench.controller.reply
    assert crew.complete
    reporter.reply = BeatReply()
    assert crew.complete
    assert crew.environment()["WORLD_SIZE"] == "2"
    assert reporter.hurried is False


def test_the_outcome_tells_when_the_program_ended(bench: Bench) -> None:
    bench.start(bench.script(train(steps=60, pause=0.05)))
    wait_until(lambda: bench.controller.last_step >= 0, 20, bench.evidence)
    bench.controller.stop()
    wait_until(bench.folder().outcome.exists, 20, bench.evidence)
    ended = time.monotonic()
    wait_until(lambda: time.monotonic() - ended > 1.0, 5)
    bench.controller.start()
    outcome(bench)
    told = next(beat for beat in bench.controller.beats if beat.outcome)
    assert 1.0 < told.outcome_age_s < 60.0


def test_ranks_meet_over_the_interface_of_their_address() -> None:
    assert interface_of("127.9.9.9") == "lo"
    assert interface_of("192.0.2.77") is None
