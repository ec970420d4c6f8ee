"""What training has used of a counter."""

from __future__ import annotations

import pytest

from trainer.power import EnergyMeter


class Slow:
    """A counter at 100 W that takes 5 ms to read."""

    source = "a test"

    def __init__(self) -> None:
        self.now = 0.0
        self.readings = 0

    def joules(self) -> float:
        self.readings += 1
        self.now += 0.005
        return 100.0 * self.now


def test_reading_takes_at_most_a_hundredth_of_the_time() -> None:
    counter = Slow()
    meter = EnergyMeter(lambda: counter, clock=lambda: counter.now)
    taken = []
    for _ in range(2000):  # stretches of 50 ms with pauses between them
        meter.begin()
        meter.count(10)
        counter.now += 0.05
        taken.append(meter.take())
        meter.end()
        counter.now += 0.01
    assert 0.005 < counter.readings * 0.005 / counter.now <= 0.01
    used = [found for found in taken if found is not None]
    assert len(used) >= 3
    for found in used:
        assert found.seconds >= 1.0
        assert found.steps / found.seconds == pytest.approx(200.0)
        assert found.joules / found.seconds == pytest.approx(100.0, rel=0.11)  # one reading in a stretch


def test_a_long_stretch_is_read_in_between() -> None:
    counter = Slow()
    meter = EnergyMeter(lambda: counter, clock=lambda: counter.now)
    meter.begin()
    found = []
    for _ in range(1000):
        meter.count(1)
        counter.now += 0.1
        found.append(meter.take())
    used = [u for u in found if u is not None]
    assert 80 <= len(used) <= 100
    assert sum(u.steps for u in used) >= 900
