"""Orders to leave a machine, as the ledger keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.control.emptying import order_away
from orchestrator.control.fleet import Fleet
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import Reason, RunState
from orchestrator.store.ledger import Ledger
from tests.unit.records import attempt, node, run

DRAINED = Fleet((node(draining=True), node("gpu")), connected=True)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def ordered(ledger: Ledger, before: RunRecord, fleet: Fleet = DRAINED) -> tuple[RunRecord, list[str]]:
    """The run with attempt 1 on the laptop after two looks, and the kinds of its events."""
    with ledger.begin() as tx:
        tx.add_run(before)
        tx.add_attempt(attempt())
    for _ in range(2):
        order_away(ledger, fleet, SYSTEM)
    with ledger.read() as tx:
        return tx.run(before.id), [event.kind for event in tx.events(before.id)]


@pytest.mark.parametrize("state", [RunState.STARTING, RunState.RUNNING])
def test_what_executes_is_ordered_once(ledger: Ledger, state: RunState) -> None:
    after, kinds = ordered(ledger, run(state=state, attempt=1))
    assert (after.state, after.stop, kinds) == (RunState.STOPPING, Reason.DRAINED, ["drained"])


@pytest.mark.parametrize(
    "before",
    [
        run(state=RunState.STOPPING, stop=Reason.CANCELLED, attempt=1),
        run(state=RunState.STOPPING, stop=Reason.MOVED, attempt=1),
        run(state=RunState.QUEUED, attempt=1),
        run(state=RunState.RUNNING, attempt=2),
    ],
)
def test_other_orders_and_newer_attempts_stand(ledger: Ledger, before: RunRecord) -> None:
    """Attempt 1 is that of a machine which is away; the run may have gone on without it."""
    assert ordered(ledger, before) == (replace(before, seq=1), [])


def test_an_open_machine_is_left_alone(ledger: Ledger) -> None:
    before = run(state=RunState.RUNNING, attempt=1)
    assert ordered(ledger, before, Fleet((node(), node("gpu", draining=True)))) == (before, [])
