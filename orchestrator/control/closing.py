"""Orders runs whose hours end to save and stop.

Their nodes do so by themselves at the time that they were told at launch, also where they are cut off. This
order comes at the same time, and also where the hours have changed since, or the launch took long.
"""

from __future__ import annotations

from orchestrator.clock import Clock
from orchestrator.control.board import Board
from orchestrator.domain.limits import describe
from orchestrator.domain.states import Reason, RunState
from orchestrator.domain.transitions import make_room
from orchestrator.store.ledger import Ledger


def order_closed(ledger: Ledger, board: Board, clock: Clock, grace_s: float) -> None:
    """Order what is outside its hours, or will be in `grace_s`. Durable, and safe to repeat."""
    now = clock.now()
    with board.lock:
        found = board.closing(now.timestamp() + grace_s)
    if not found:
        return
    with ledger.begin() as writing:
        for run_id, number in found:
            run = writing.run(run_id)
            if run.attempt == number and run.state in (RunState.STARTING, RunState.RUNNING) and not run.stop:
                writing.save_run(make_room(run, Reason.WINDOW))
                writing.add_event(run_id, now, Reason.WINDOW.value, describe(run.spec, Reason.WINDOW))
