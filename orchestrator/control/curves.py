"""Curves of runs that execute, small enough to be drawn in a line of text.

Each is read once; after that only what is new is. So a look at fifty runs costs the same however long they
have been going.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.messages_top import TopCurve
from orchestrator.store.spool import Spool
from orchestrator.store.spool_schema import Stretches

MOST = 60
"""Values of a curve."""
_Key = tuple[str, str]


@dataclass
class _Curve:
    """Sums of values and their numbers over stretches of `width` steps."""

    width: int
    last: int = -1
    """The highest step that is in it."""
    sums: dict[int, tuple[float, int]] = field(default_factory=dict)
    shown: TopCurve | None = None
    """What :meth:`view` has answered; None once there is more."""

    def add(self, stretch: int, total: float, count: int, last: int) -> None:
        """Take in points of one stretch."""
        known, before = self.sums.get(stretch, (0.0, 0))
        self.sums[stretch] = (known + total, before + count)
        self.last, self.shown = max(self.last, last), None

    def narrow(self) -> None:
        """Double the stretches until there are few enough of them."""
        while self.last // self.width >= MOST:
            self.width *= 2
            sums, self.sums = self.sums, {}
            for stretch, (total, count) in sums.items():
                known, before = self.sums.get(stretch // 2, (0.0, 0))
                self.sums[stretch // 2] = (known + total, before + count)

    def view(self) -> TopCurve:
        """Means in the order of steps, in five digits."""
        if self.shown is None:
            self.shown = self._view()
        return self.shown

    def _view(self) -> TopCurve:
        means = [(at * self.width, total / count) for at, (total, count) in sorted(self.sums.items())]
        finite = [(step, mean) for step, mean in means if math.isfinite(mean)]
        return TopCurve(
            steps=[step for step, _ in finite], values=[float(f"{mean:.5g}") for _, mean in finite]
        )


class Curves:
    """Remembers the curves that were asked for last. Safe to use from several threads."""

    def __init__(self, spool: Spool, keys: Sequence[str]) -> None:
        self._spool = spool
        self._keys = keys
        self._lock = threading.Lock()
        self._curves: dict[_Key, _Curve] = {}

    def of(self, steps: Mapping[str, int | None]) -> dict[str, dict[str, TopCurve]]:
        """By run and metric, of runs with the step at which each of them is about."""
        with self._lock:
            self._curves = {
                (run, key): self._curves.get((run, key)) or _Curve(_width(step))
                for run, step in steps.items()
                for key in self._keys
            }
            asked = [Stretches(*name, curve.last, curve.width) for name, curve in self._curves.items()]
            for curve, found in zip(self._curves.values(), self._spool.stretches(asked), strict=True):
                for sums in found:
                    curve.add(*sums)
                curve.narrow()
            return self._shown()

    def _shown(self) -> dict[str, dict[str, TopCurve]]:
        shown: dict[str, dict[str, TopCurve]] = {}
        for (run, key), curve in self._curves.items():
            if curve.sums:
                shown.setdefault(run, {})[key] = curve.view()
        return shown


def _width(step: int | None) -> int:
    """Steps of a stretch with which a curve up to this step has few enough: a power of two."""
    return 1 << max(0, (step or 0) // MOST).bit_length()
