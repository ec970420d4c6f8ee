"""The scheduler's decisions in simulated fleets. `make soak` simulates ten million events.

Whatever happens in a world follows from its seed. `ORCH_SOAK_SEED=N ORCH_SOAK_PARTS=1 ORCH_SOAK_EVENTS=1` is
world N alone.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.simulation.checks import BrokenPromiseError, check
from tests.simulation.world import World

EVENTS = int(os.environ.get("ORCH_SOAK_EVENTS", "20000"))
PER_WORLD = 3000
PARTS = int(os.environ.get("ORCH_SOAK_PARTS", "2"))
"""Of equal size, for `pytest -n`."""
FIRST = int(os.environ.get("ORCH_SOAK_SEED", "0"))
"""Seed of the first world."""
TELL_EVERY = 50
"""Worlds of a part after which it prints how far it is (`pytest -s`)."""


def simulate(seed: int, events: int) -> World:
    """A whole world, with at least so many events."""
    world = World(seed, check=check)
    try:
        while world.events < events and world.step():
            pass
        world.settle(100_000.0)
    except BrokenPromiseError as e:
        e.add_note(f"world {seed}, event {world.events}")
        raise
    return world


@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_promises_hold_and_every_run_comes_to_its_end(part: int) -> None:
    events = worlds = runs = attempts = 0
    began = time.monotonic()
    while events < EVENTS / PARTS:
        seed = FIRST + part + worlds * PARTS
        world = simulate(seed, PER_WORLD)
        left = world.unfinished()
        assert not left, f"world {seed}: {[(run.id, run.state, run.spec.placement) for run in left]}"
        events, worlds = events + world.events, worlds + 1
        runs, attempts = runs + len(world.runs), attempts + len(world.attempts)
        if worlds % TELL_EVERY == 0 or events >= EVENTS / PARTS:
            passed = time.monotonic() - began
            told = f"{events} events, {runs} runs, {attempts} attempts in {worlds} worlds, the last {seed}"
            print(f"part {part}: {told}, {passed:.0f} s", flush=True)
    assert runs > 20 * worlds


@pytest.mark.parametrize(("seed", "events"), [(59, 600), (411, 1600)])
def test_worlds_in_which_a_promise_was_broken_once(seed: int, events: int) -> None:
    """59: backfill that ends with its window made room, came back before the other, and made room again.
    411: it did where nodes were kept for a third run, and not for the one for which others made room."""
    simulate(seed, events)
