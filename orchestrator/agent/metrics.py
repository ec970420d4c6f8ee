"""Reads what the program measures. The file is the memory: two readers go through it at their own pace."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.messages_agent import Point

MAX_LINE = 1 << 20
"""A longer line is no measurement."""
_BLOCK = 1 << 20
_MAX_STEP = 2**53
_NONFINITE = "/nonfinite"
_MAX_KEY = 250 - len(_NONFINITE)
"""MLflow accepts 250."""


class MetricsReader:
    """Points of a metrics file in the order in which they were written.

    Whole lines only; a line that is still being written waits. Malformed lines are counted and skipped.
    """

    def __init__(self, file: Path) -> None:
        self.malformed = 0
        self.example = ""
        """The first malformed line, cut."""
        self.last_step: int | None = None
        """Highest step read so far."""
        self._file = file
        self._offset = 0

    def read(self, limit: int) -> list[Point]:
        """The next points: about `limit`, more where one line holds several."""
        points: list[Point] = []
        while len(points) < limit:
            lines = self._lines()
            if not lines:
                break
            for line in lines:
                self._offset += len(line)
                points += self._parse(line)
                if len(points) >= limit:
                    break
        return points

    def read_all(self) -> Iterator[Point]:
        """Every point from here to the file's present end."""
        while points := self.read(10_000):
            yield from points

    def _lines(self) -> list[bytes]:
        try:
            with self._file.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset = 0  # The program has begun the file anew.
                file.seek(self._offset)
                data = file.read(_BLOCK)
        except OSError:
            return []  # Not there, or not yet.
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= MAX_LINE:
            end = len(data)
        return [line + b"\n" for line in data[:end].removesuffix(b"\n").split(b"\n")] if end else []

    def _parse(self, line: bytes) -> list[Point]:
        if not line.strip():
            return []
        try:
            points = list(parse_line(line))
        except (ValueError, OverflowError, RecursionError):
            self.malformed += 1
            self.example = self.example or line[:200].decode(errors="replace").strip()
            return []
        if points:
            self.last_step = max(self.last_step or 0, points[0].step)
        return points


def parse_line(line: bytes) -> Iterator[Point]:
    """The points of ``{"step": 3, "time": unix_ms, "metrics": {"a": 1.0}}``; ValueError for anything else.

    A value that is not finite becomes the point KEY/nonfinite = 1, because JSON and MLflow cannot carry it.
    """
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("metrics"), dict):
        raise ValueError("not a measurement")
    step, time_ms = _whole(record.get("step")), _whole(record.get("time"))
    for key, value in record["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < len(key) <= _MAX_KEY:
            raise ValueError("not a measurement")
        key.encode()  # JSON can name half a character, which nothing can write down again.
        if math.isfinite(value):
            yield Point(key=key, step=step, time_ms=time_ms, value=float(value))
        else:
            yield Point(key=f"{key}{_NONFINITE}", step=step, time_ms=time_ms, value=1.0)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError("not a whole number")
    if not 0 <= value < _MAX_STEP:
        raise ValueError("out of range")
    return int(value)


class CommitPoints:
    """The points that go into the store with each checkpoint of one attempt. For one thread."""

    def __init__(self, file: Path, limit: int = 48 << 20) -> None:
        self._reader = MetricsReader(file)
        self._limit = limit
        self._later: list[tuple[int, bytes]] = []
        """Step and encoded point of what no commit has taken yet, in the order of measuring."""
        self._given: set[int] = set()
        """Places in that list of what the last call of `until` gave."""

    def until(self, step: int) -> bytes:
        """Points of steps up to `step` that no earlier commit has taken, a line each, JSON of messages.Point.

        At most `limit` bytes; what is left comes with the next commit. Until :meth:`taken` says that they
        are in the store, the next call gives them again.
        """
        self._later += [(point.step, encode_point(point)) for point in self._reader.read_all()]
        self._given, lines, size = set(), [], 0
        for place, (measured, line) in enumerate(self._later):
            if measured <= step and size + len(line) <= self._limit:
                self._given.add(place)
                lines.append(line)
                size += len(line)
        return b"".join(lines)

    def taken(self) -> None:
        """What the last call of :meth:`until` gave is in the store."""
        self._later = [item for place, item in enumerate(self._later) if place not in self._given]
        self._given = set()


def encode_point(point: Point) -> bytes:
    """One line of JSON."""
    return point.model_dump_json().encode() + b"\n"
