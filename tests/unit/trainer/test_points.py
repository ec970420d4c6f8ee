"""Values of logged steps that are asked for together."""

from __future__ import annotations

import time

import torch

from trainer.points import Point, Points


def test_held_points_survive_that_their_tensors_are_overwritten() -> None:
    points = Points(hold_s=60.0)
    loss, norm = torch.tensor(3.0), torch.tensor(0.5)
    assert points.add(0, loss, norm)  # the first is due at once
    assert points.take() == [Point(0, 3.0, 0.5)]
    assert not points.add(10, loss, norm)
    loss.fill_(2.0)
    norm.fill_(0.25)
    assert not points.add(20, loss, norm)
    assert points.take() == [Point(10, 3.0, 0.5), Point(20, 2.0, 0.25)]
    assert points.take() == []


def test_points_are_due_again_after_a_while() -> None:
    points = Points(hold_s=0.05)
    one = torch.tensor(1.0)
    points.add(0, one, one)
    points.take()
    time.sleep(0.06)
    assert points.add(1, one, one)


def test_without_holding_each_point_is_due() -> None:
    points = Points(hold_s=0.0)
    one = torch.tensor(1.0)
    for step in range(3):
        assert points.add(step, one, one)
        assert points.take() == [Point(step, 1.0, 1.0)]
