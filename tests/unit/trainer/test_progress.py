"""The meter, on a clock that a test moves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.trainer.support import tiny
from trainer import progress
from trainer.device import Hardware
from trainer.power import EnergyMeter
from trainer.progress import Meter

CPU = Hardware(torch.device("cpu"), torch.float32, 1, deterministic=True)
TOKENS = 4 * 8


class Counter:
    source = "a test"

    def __init__(self) -> None:
        self.total: float | None = 0.0
        self.readings = 0

    def joules(self) -> float | None:
        self.readings += 1
        return self.total


class World:
    """A clock, an energy counter, and what peak will be measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.counter = Counter()
        self.peaks = [1e6]
        self.measured: list[bool] = []
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(progress, "EnergyMeter", lambda find: EnergyMeter(find, clock=lambda: self.now))
        monkeypatch.setattr(progress, "gemm_peak", self._peak)
        monkeypatch.setattr(progress, "flops_per_step", lambda config, parameters: 1e5)

    def _peak(self, hardware: Hardware, again: bool = False) -> float:
        self.measured.append(again)
        self.pass_by(50.0, 1e6)  # must not be counted
        return self.peaks.pop(0)

    def meter(self, **arguments: Any) -> Meter:
        return Meter(tiny(Path("t")), CPU, 1000, energy=self.counter, **arguments)

    def work(self, meter: Meter, steps: int, seconds: float, joules: float = 0.0) -> dict[str, float]:
        for _ in range(steps):
            meter.count()
            self.pass_by(seconds / steps, joules / steps)
        return meter.lap()

    def pass_by(self, seconds: float, joules: float = 0.0) -> None:
        self.now += seconds
        if self.counter.total is not None:
            self.counter.total += joules


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_lap_is_without_what_is_paused_or_measured(world: World) -> None:
    meter = world.meter()
    assert world.work(meter, 1, 9.0) == {}
    for _ in range(2):  # the peak is measured in the first of them
        meter.count()
        world.pass_by(0.25)
        with meter.paused():
            world.pass_by(1000.0, 1e6)
        speed = world.work(meter, 1, 0.25)
        assert speed["perf/step_ms"] == pytest.approx(250.0)
        assert speed["perf/tokens_per_s"] == pytest.approx(TOKENS / 0.25)
        assert speed["perf/mfu"] == pytest.approx(0.4)
        assert speed["perf/mfu_a100"] == pytest.approx(4e5 / 312e12)
    assert world.measured == [False]


def test_energy_comes_once_a_second_was_measured(world: World) -> None:
    meter = world.meter()
    assert world.work(meter, 1, 9.0, 1e6) == {}  # while it warms up
    second = world.work(meter, 2, 0.5, 40.0)  # the peak is measured then, and its energy left out
    assert "perf/watts" not in second
    third = world.work(meter, 1, 0.5, 80.0)
    assert third["perf/watts"] == pytest.approx(120.0)
    assert third["perf/joules_per_token"] == pytest.approx(120.0 / (3 * TOKENS))
    assert "perf/watts" not in world.work(meter, 1, 0.5, 30.0)
    with meter.paused():
        world.pass_by(9.0, 900.0)
    assert world.work(meter, 1, 0.5, 20.0)["perf/watts"] == pytest.approx(50.0)


def test_nothing_is_said_of_energy_that_is_not_known(world: World) -> None:
    meter = world.meter()
    world.work(meter, 1, 1.0)
    world.counter.total = None
    speed = world.work(meter, 2, 2.0)
    assert "perf/mfu" in speed
    assert not {"perf/watts", "perf/joules_per_token"} & speed.keys()


def test_a_peak_that_is_too_low_is_measured_once_more(world: World) -> None:
    world.peaks = [1e5, 4e5]
    meter = world.meter()
    world.work(meter, 1, 1.0)
    assert world.work(meter, 1, 1.0)["perf/mfu"] == pytest.approx(1.0)
    assert world.work(meter, 2, 1.0)["perf/mfu"] == pytest.approx(0.5)  # 2e5 of 4e5
    assert world.work(meter, 5, 1.0)["perf/mfu"] == pytest.approx(1.0)  # what was seen can be done
    assert world.measured == [False, True]


def test_ranks_share_work_and_add_energy(world: World) -> None:
    meter = world.meter(world=2)
    world.work(meter, 1, 1.0)
    speed = world.work(meter, 2, 1.0, 100.0)
    assert speed["perf/tokens_per_s"] == pytest.approx(2 * TOKENS)
    assert speed["perf/mfu"] == pytest.approx(0.1)
    assert speed["perf/watts"] == pytest.approx(200.0)
    assert speed["perf/joules_per_token"] == pytest.approx(200.0 / (2 * TOKENS))
