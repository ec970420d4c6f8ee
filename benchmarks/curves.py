"""The whole val split's loss on the way of a training."""

from __future__ import annotations

from benchmarks.workers import Worker

Curve = list[tuple[int, float]]
"""Steps and losses."""


def follow(worker: Worker, begin: int, steps: int, every: int) -> tuple[Curve, float]:
    """Train from step `begin` to `steps`, measuring after every `every` steps and at the end.

    The curve, and the wall time in seconds that the steps took.
    """
    curve: Curve = []
    train_s, at = 0.0, begin
    for end in [*range(begin + every, steps, every), steps]:
        train_s += worker.steps(end - at).wall_s
        curve.append((end, worker.val()))
        at = end
    return curve, train_s
