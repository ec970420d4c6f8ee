"""Orders runs away from machines that are to be empty."""

from __future__ import annotations

from orchestrator.clock import Clock
from orchestrator.control.fleet import Fleet
from orchestrator.domain.emptying import Leave, leaving
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import RunState
from orchestrator.domain.transitions import make_room
from orchestrator.store.ledger import Ledger


def order_away(ledger: Ledger, fleet: Fleet, clock: Clock) -> None:
    """Order what executes on draining nodes, and on nodes that their owners need, to save and stop.

    Durable, so that the order outlives the controller. Safe to repeat: who was ordered to stop before, for
    whatever reason, gets no second order.
    """
    if not any(node.draining or node.report.yields for node in fleet.nodes):
        return
    with ledger.read() as reading:
        found = leaving(fleet.nodes, reading.open_attempts())
        orders = [order for order in found if _stands(reading.run(order.run_id), order)]
    if not orders:
        return
    now = clock.now()
    with ledger.begin() as writing:
        for order in orders:
            run = writing.run(order.run_id)
            if _stands(run, order):
                writing.save_run(make_room(run, order.reason))
                writing.add_event(run.id, now, order.reason.value, order.text)


def _stands(run: RunRecord, order: Leave) -> bool:
    """Whether the order has something to change. An attempt that a newer one replaced ends by its fence."""
    return run.state in (RunState.STARTING, RunState.RUNNING) and order.attempt == run.attempt
