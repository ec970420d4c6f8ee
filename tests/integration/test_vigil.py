"""Ranks whose processes wait for a GPU notice that another one has ended. A sleep stands for the GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.contract import EXIT_LOST_RANK
from tests.integration.test_trainer_ranks import gang
from tests.support import wait_until

PROGRAM = """
import sys, time, torch
from trainer.ranks import join
from trainer import vigil as module
from trainer.vigil import Vigil
module.GRACE_S = 0.5
ranks = join(torch.device("cpu"))
vigil = Vigil(ranks.rank, ranks.world, "127.0.0.1", ranks.broadcast, 300.0)
ranks.barrier()
print("there", flush=True)
time.sleep(float(sys.argv[1]) * (1 + ranks.rank))
vigil.leave()
"""


@pytest.mark.parametrize("killed", [0, 2])
def test_all_end_soon_after_one_has_been_killed(tmp_path: Path, killed: int) -> None:
    with gang([[sys.executable, "-c", PROGRAM, "600"]] * 3, tmp_path) as children:
        logs = [tmp_path / f"rank-{rank}" for rank in range(3)]
        wait_until(lambda: all("there" in log.read_text() for log in logs), 60)
        children[killed].kill()
        for rank, child in enumerate(children):
            if rank != killed:
                assert child.wait(30) == EXIT_LOST_RANK
                assert f"trainer: rank {rank} of 3 lost another rank: it has ended" in logs[rank].read_text()


def test_nobody_minds_ranks_that_leave_one_after_the_other(tmp_path: Path) -> None:
    with gang([[sys.executable, "-c", PROGRAM, "1"]] * 3, tmp_path) as children:
        assert [child.wait(60) for child in children] == [0, 0, 0]
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(3)] == ["there\n"] * 3
