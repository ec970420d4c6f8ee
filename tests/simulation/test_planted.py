"""The simulation finds mistakes: each of these is planted into the real code, and has to break a promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from orchestrator.control.board import running_of
from orchestrator.domain import planner, rivalry
from orchestrator.domain.fleet import NodeInfo
from orchestrator.domain.limits import first_limit
from orchestrator.domain.liveness import Facts, Lost, Silent
from orchestrator.domain.queue import Queue
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.room import Grant, Room
from orchestrator.domain.states import CONSEQUENCES, Reason, RunState, Then
from orchestrator.domain.transitions import after_attempt
from tests.simulation import books, controller, execution, world
from tests.simulation.checks import BrokenPromiseError, check, promise
from tests.simulation.world import World

WORLDS = 12
EVENTS = 1500
Patch = pytest.MonkeyPatch


def shares_are_not_counted(patch: Patch) -> None:
    take = Room.take

    def forgetful(room: Room, grant: Grant) -> None:
        take(room, grant)
        for gpu in room.gpus:
            gpu.shared = 0

    patch.setattr(Room, "take", forgetful)


def gpus_are_not_counted(patch: Patch) -> None:
    take = Room.take

    def forgetful(room: Room, grant: Grant) -> None:
        take(room, grant)
        for gpu in room.gpus:
            gpu.whole = False

    patch.setattr(Room, "take", forgetful)


def processors_are_given_back_at_once(patch: Patch) -> None:
    take = Room.take

    def generous(room: Room, grant: Grant) -> None:
        take(room, grant)
        room.cpus += 1

    patch.setattr(Room, "take", generous)


def the_least_important_goes_first(patch: Patch) -> None:
    levels = Queue.levels
    patch.setattr(Queue, "levels", lambda queue: list(reversed(levels(queue))))


def preemption_costs_a_retry(patch: Patch) -> None:
    patch.setitem(CONSEQUENCES, Reason.PREEMPTED, replace(CONSEQUENCES[Reason.PREEMPTED], then=Then.RETRY))


def a_lost_machine_costs_a_retry(patch: Patch) -> None:
    patch.setitem(CONSEQUENCES, Reason.NODE_LOST, replace(CONSEQUENCES[Reason.NODE_LOST], then=Then.RETRY))


def a_start_wins_over_a_cancel(patch: Patch) -> None:
    after = controller.after_attempt

    def deaf(run: RunRecord, attempt: AttemptRecord, *rest: Any, **more: Any) -> RunRecord:
        return after(replace(run, stop=None), attempt, *rest, **more)

    patch.setattr(controller, "after_attempt", deaf)


def what_has_ended_is_cancelled(patch: Patch) -> None:
    patch.setattr(World, "_some_run", lambda world: next(iter(world.runs.values()), None))
    patch.setattr(world, "cancel", lambda run, now: replace(run, state=RunState.STOPPING))


def what_comes_back_is_forgotten(patch: Patch) -> None:
    add = Queue.add
    patch.setattr(Queue, "add", lambda queue, one: None if one.order[2] % 5 == 3 else add(queue, one))


def backoff_never_ends(patch: Patch) -> None:
    patch.setattr(Queue, "due", lambda queue, now: None)


def backoff_is_ignored(patch: Patch) -> None:
    waiting_of = books.waiting_of
    patch.setattr(books, "waiting_of", lambda run: replace(waiting_of(run), not_before=None))


def what_is_held_starts(patch: Patch) -> None:
    waiting_of = books.waiting_of
    patch.setattr(books, "waiting_of", lambda run: replace(waiting_of(run), held=False))


def equals_make_room_for_each_other(patch: Patch) -> None:
    patch.setattr(rivalry, "_yields", lambda grant, one, kept: grant.priority <= -one.order[0])


def nobody_makes_room(patch: Patch) -> None:
    patch.setattr(controller, "evictions", lambda desk: [])


def closed_nodes_are_used(patch: Patch) -> None:
    closed = NodeInfo.closed.fget  # type: ignore[attr-defined]
    patch.setattr(planner.Desk, "__init__", _with_all_open(planner.Desk.__init__))
    assert closed is not None


def _with_all_open(init: Callable[..., None]) -> Callable[..., None]:
    def opened(desk: Any, rooms: Any, *rest: Any) -> None:
        for room in rooms.values():
            room.node = replace(room.node, draining=False)
        init(desk, rooms, *rest)

    return opened


def nobody_waits_for_the_best(patch: Patch) -> None:
    patch.setattr(planner, "_best_only", lambda waiting, now: False)


def a_part_of_a_gang_starts(patch: Patch) -> None:
    gang = planner._gang
    patch.setattr(
        planner, "_gang", lambda waiting, rooms, demand: gang(waiting, rooms, replace(demand, ranks=2))
    )


def moves_go_down(patch: Patch) -> None:
    patch.setattr(rivalry, "_position", lambda shape, demand: len(shape.demands))


def the_unreachable_are_dead(patch: Patch) -> None:
    found = controller.verdict

    def hasty(attempt: AttemptRecord, facts: Facts) -> Any:
        silent = found(attempt, facts)
        return Lost(Reason.NODE_LOST, silent.message) if isinstance(silent, Silent) else silent

    patch.setattr(controller, "verdict", hasty)


def nobody_waits_for_sleepers(patch: Patch) -> None:
    patch.setattr(controller, "may_leave", lambda run, facts, fits: "no patience")


def what_comes_back_counts_nowhere(patch: Patch) -> None:
    """What still runs on a machine that is another Ray node now."""
    patch.setattr(books, "running_of", lambda *a, **b: replace(running_of(*a, **b), node=""))


def memory_that_ran_out_is_forgotten(patch: Patch) -> None:
    patch.setattr(controller, "after_attempt", lambda *a, **b: replace(after_attempt(*a, **b), avoid=()))


def nobody_has_time_to_save(patch: Patch) -> None:
    patch.setattr(execution, "first_limit", partial(first_limit, grace_s=0.0))


def nodes_do_not_know_of_windows(patch: Patch) -> None:
    patch.setattr(execution, "first_limit", lambda *a, **b: None)


def windows_are_forgotten_by_a_new_controller(patch: Patch) -> None:
    waiting_of = books.waiting_of

    def without(run: RunRecord) -> Any:
        return replace(waiting_of(run), hours=None)

    def forget(world: World) -> None:
        books.waiting_of = without  # type: ignore[attr-defined]
        forgotten(world)
        books.waiting_of = waiting_of  # type: ignore[attr-defined]

    forgotten = World._forget
    patch.setattr(World, "_forget", forget)


def what_waits_for_its_window_is_not_looked_at_again(patch: Patch) -> None:
    look_at = Queue._look_at
    patch.setattr(Queue, "_look_at", lambda queue, one, at: at == 0.0 and look_at(queue, one, at))


def limits_are_ignored_by_evictions(patch: Patch) -> None:
    """Victims that make room for nobody: the run that goes first may not start."""
    patch.setattr(planner.Desk, "may_use", lambda desk, waiting, demand, room: True)
    patch.setattr(rivalry, "_claim", _claim_that_yields)


def _claim_that_yields(waiting: Any, demand: Any, room: Room) -> Grant:
    gpu_ids = room.choose(demand)
    return Grant(waiting.run_id, "", room.node.ray_id, demand, (0, 0, 0), gpu_ids, stopping=True)


def some_make_room_for_nothing(patch: Patch) -> None:
    patch.setattr(rivalry, "_served", lambda way, waiting, desk, placed: waiting)


PLANTED = [
    shares_are_not_counted,
    gpus_are_not_counted,
    processors_are_given_back_at_once,
    the_least_important_goes_first,
    preemption_costs_a_retry,
    a_lost_machine_costs_a_retry,
    a_start_wins_over_a_cancel,
    what_has_ended_is_cancelled,
    what_comes_back_is_forgotten,
    backoff_never_ends,
    backoff_is_ignored,
    what_is_held_starts,
    equals_make_room_for_each_other,
    nobody_makes_room,
    closed_nodes_are_used,
    nobody_waits_for_the_best,
    a_part_of_a_gang_starts,
    moves_go_down,
    the_unreachable_are_dead,
    nobody_waits_for_sleepers,
    what_comes_back_counts_nowhere,
    memory_that_ran_out_is_forgotten,
    limits_are_ignored_by_evictions,
    some_make_room_for_nothing,
    nobody_has_time_to_save,
    nodes_do_not_know_of_windows,
    windows_are_forgotten_by_a_new_controller,
    what_waits_for_its_window_is_not_looked_at_again,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_the_simulation_finds(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    with pytest.raises(BrokenPromiseError, match="rule"):
        simulate()


def simulate() -> None:
    """Some worlds, until a promise is broken."""
    for seed in range(WORLDS):
        world = World(seed, check=check)
        while world.events < EVENTS and world.step():
            pass
        world.settle(5000.0)
        promise(not world.unfinished(), "rule 4", "runs never end")
