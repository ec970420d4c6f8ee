"""The scheduler's decisions in simulated fleets. `make soak` simulates ten million events."""

from __future__ import annotations

import os

from tests.simulation.checks import check
from tests.simulation.world import World

EVENTS = int(os.environ.get("ORCH_SOAK_EVENTS", "20000"))
PER_WORLD = 3000


def simulate(seed: int, events: int) -> World:
    world = World(seed, check=check)
    while world.events < events and world.step():
        pass
    world.settle(100_000.0)
    return world


def test_promises_hold_and_every_run_comes_to_its_end() -> None:
    done, seed, finals = 0, 0, 0
    while done < EVENTS:
        world = simulate(seed, PER_WORLD)
        left = world.unfinished()
        assert not left, f"world {seed}: {[(run.id, run.state, run.spec.placement) for run in left]}"
        done, seed, finals = done + world.events, seed + 1, finals + len(world.runs)
    assert finals > 100
    print(f"{done} events in {seed} worlds, {finals} runs")
