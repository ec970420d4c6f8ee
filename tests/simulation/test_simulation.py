"""The scheduler's decisions in simulated fleets. `make soak` simulates ten million events."""

from __future__ import annotations

import os

import pytest

from tests.simulation.checks import check
from tests.simulation.world import World

EVENTS = int(os.environ.get("ORCH_SOAK_EVENTS", "20000"))
PER_WORLD = 3000
PARTS = int(os.environ.get("ORCH_SOAK_PARTS", "2"))
"""Of equal size, for `pytest -n`."""


def simulate(seed: int, events: int) -> World:
    world = World(seed, check=check)
    while world.events < events and world.step():
        pass
    world.settle(100_000.0)
    return world


@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_promises_hold_and_every_run_comes_to_its_end(part: int) -> None:
    done, seed, runs = 0, part, 0
    while done < EVENTS / PARTS:
        world = simulate(seed, PER_WORLD)
        left = world.unfinished()
        assert not left, f"world {seed}: {[(run.id, run.state, run.spec.placement) for run in left]}"
        done, seed, runs = done + world.events, seed + PARTS, runs + len(world.runs)
    assert runs > 100
    print(f"{done} events in {seed // PARTS} worlds, {runs} runs")
