"""Delivery against a controller that fails in every way. No process, no network."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from orchestrator.agent import reporter as module
from orchestrator.agent.link import Link, RefusedError
from orchestrator.agent.output import OutputLog
from orchestrator.agent.reporter import Reporter
from orchestrator.domain.states import Phase, Reason
from orchestrator.errors import FencedError, UnauthorizedError, UnavailableError
from orchestrator.messages_agent import Beat, BeatReply, Outcome


class FlakyLink(Link):
    """Keeps what it is told; fails before or after taking a beat, or answers nonsense."""

    def __init__(self, seed: int, failures: float) -> None:
        self.random = random.Random(seed)
        self.failures = failures
        self.beats: list[Beat] = []
        self.log = b""
        self.fence_after: int | None = None
        self.poison: str | None = None
        self.forget_at: int | None = None
        """After so many beats it has lost the second half of the log."""

    def post(self, path: str, body: bytes) -> bytes:
        beat = Beat.model_validate_json(body)
        assert len(beat.points) <= module.MAX_POINTS
        assert beat.log is None or len(beat.log.data) <= module.MAX_LOG_BYTES
        if self.random.random() < self.failures:
            raise self.random.choice([UnavailableError("away"), UnauthorizedError("no")])
        if self.fence_after is not None and len(self.beats) >= self.fence_after:
            raise FencedError("taken")
        if self.poison in {point.key for point in beat.points}:
            raise RefusedError("cannot take it")
        self.beats.append(beat)
        if beat.log is not None and beat.log.offset <= len(self.log):
            self.log = self.log[: beat.log.offset] + beat.log.data
        if len(self.beats) == self.forget_at:
            self.log = self.log[: len(self.log) // 2]
        if self.random.random() < self.failures:
            raise UnavailableError("the answer is lost")
        if self.random.random() < self.failures / 2:
            return b"<html>a proxy</html>"
        return BeatReply(log_offset=len(self.log)).model_dump_json().encode()

    def close(self) -> None:
        pass


class Setting:
    def __init__(self, tmp_path: Path, link: FlakyLink, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "INTERVAL_S", 0.001)
        monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.002)
        self.metrics, self.output = tmp_path / "m", tmp_path / "o"
        self.link = link
        first = Beat(phase=Phase.CLAIMING, pid=1)
        self.reporter = Reporter(link, "/beat", first, self.metrics, OutputLog(self.output), lambda: None)

    def run(self) -> None:
        self.reporter.start()
        self.reporter.finish(Outcome(reason=Reason.COMPLETED))
        assert self.reporter.finished.wait(20)

    def write(self, lines: int, width: int = 1, size: int = 0) -> None:
        with self.metrics.open("ab") as file:
            for step in range(lines):
                metrics = {f"k{n}": float(step) for n in range(width)}
                file.write(json.dumps({"step": step, "time": step, "metrics": metrics}).encode() + b"\n")
        self.output.write_bytes(random.Random(1).randbytes(size))


@pytest.mark.parametrize("seed", range(5))
def test_everything_arrives_in_order_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    setting = Setting(tmp_path, FlakyLink(seed, 0.4), monkeypatch)
    setting.write(2500, width=3, size=1_000_000)
    for number in range(150):
        setting.reporter.event(f"event {number}")
    setting.run()
    points = [(p.step, p.key) for beat in setting.link.beats for p in beat.points]
    assert list(dict.fromkeys(points)) == [(n, f"k{k}") for n in range(2500) for k in range(3)]
    assert setting.link.log == setting.output.read_bytes()
    events = [event for beat in setting.link.beats for event in beat.events]
    assert list(dict.fromkeys(events)) == [f"event {n}" for n in range(150)]
    assert setting.link.beats[-1].outcome == Outcome(reason=Reason.COMPLETED)


def test_the_outcome_comes_with_or_after_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, FlakyLink(0, 0.0), monkeypatch)
    setting.write(5000, size=3_000_000)
    setting.run()
    with_outcome = [beat.outcome is not None for beat in setting.link.beats]
    assert with_outcome == [False] * (len(with_outcome) - 1) + [True]
    assert setting.link.beats[-1].phase is Phase.ENDED
    assert setting.link.log == setting.output.read_bytes()


def test_a_controller_that_has_lost_output_gets_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = FlakyLink(0, 0.0)
    link.forget_at = 4
    setting = Setting(tmp_path, link, monkeypatch)
    setting.write(1, size=2_000_000)
    setting.run()
    assert link.log == setting.output.read_bytes()


def test_output_that_is_not_taken_is_offered_at_the_usual_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(FlakyLink):
        def post(self, path: str, body: bytes) -> bytes:
            self.beats.append(Beat.model_validate_json(body))
            return BeatReply(log_offset=0).model_dump_json().encode()

    setting = Setting(tmp_path, Full(0, 0.0), monkeypatch)
    monkeypatch.setattr(module, "INTERVAL_S", 0.05)
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.05)
    setting.write(1, size=1_000_000)
    setting.reporter.start()
    setting.reporter.finished.wait(0.5)
    setting.reporter.close()
    assert 2 <= len(setting.link.beats) <= 15


def test_without_failures_nothing_is_sent_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(tmp_path, FlakyLink(0, 0.0), monkeypatch)
    setting.write(3000)
    setting.run()
    assert sum(len(beat.points) for beat in setting.link.beats) == 3000


def test_a_point_that_is_refused_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = FlakyLink(0, 0.0)
    link.poison = "k1"
    setting = Setting(tmp_path, link, monkeypatch)
    setting.write(40, width=2)
    setting.run()
    points = {(p.step, p.key) for beat in link.beats for p in beat.points}
    assert points == {(n, "k0") for n in range(40)}
    assert sum("refuses k1" in event for beat in link.beats for event in beat.events) >= 40


def test_a_fence_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = FlakyLink(0, 0.0)
    link.fence_after = 0
    setting = Setting(tmp_path, link, monkeypatch)
    setting.reporter.start()
    for _ in range(1000):
        if setting.reporter.fenced:
            break
        setting.reporter.finished.wait(0.005)
    setting.reporter.close()
    assert setting.reporter.fenced == "taken"


def test_malformed_lines_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(tmp_path, FlakyLink(0, 0.0), monkeypatch)
    setting.write(3)
    with setting.metrics.open("ab") as file:
        file.write(b"loss=3\nloss=4\n")
    setting.run()
    events = [event for beat in setting.link.beats for event in beat.events]
    assert len(events) == 1
    assert "loss=3" in events[0]
