"""Tells the controller about the attempt, and hears what it wants. Nothing that happens here holds up
training.

About once a second, and at once on news, a beat goes out. What it carries stays here until the controller
has answered, so that a controller that is away for hours gets everything when it returns: points and log
bytes in their order, in beats of bounded size that follow each other quickly. Repeating a beat changes
nothing on the other side, so an answer that is lost does no harm.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from orchestrator.agent.link import Link
from orchestrator.agent.metrics import MetricsReader
from orchestrator.agent.output import OutputLog
from orchestrator.clock import SYSTEM, Clock
from orchestrator.domain.states import Phase
from orchestrator.errors import FencedError, OrchError, UnauthorizedError, UnavailableError
from orchestrator.messages_agent import Beat, BeatReply, CheckpointNote, LogChunk, Outcome, Point

log = logging.getLogger(__name__)

INTERVAL_S = 0.8
"""An order, such as to cancel, comes with an answer, and has to reach the program within a second."""
HURRIED_S = 0.2
MAX_POINTS = 1000
MAX_LOG_BYTES = 256 << 10
_MAX_EVENTS = 100
_LONGEST_WAIT_S = 5.0


class Reporter:
    """What the agent says, and the thread that says it. Every method can be called from any thread."""

    def __init__(
        self,
        link: Link,
        path: str,
        first: Beat,
        metrics: Path,
        output: OutputLog,
        notify: Callable[[], None],
        clock: Clock = SYSTEM,
    ) -> None:
        self.reply: BeatReply | None = None
        """The controller's last answer."""
        self.fenced: str | None = None
        """Set once the controller has said that a newer attempt owns the run."""
        self.finished = threading.Event()
        """The controller has everything, the outcome included."""
        self.hurried = False
        """Whether to ask more often, because something is waited for."""
        self.program_ended: float | None = None
        """When, in boot-time seconds of the clock; for the beat with the outcome."""
        self._link = link
        self._path = path
        self._beat = first
        self._metrics = MetricsReader(metrics)
        self._output = output
        self._notify = notify
        self._clock = clock
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._closed = False
        self._events: list[str] = []
        self._notes: list[CheckpointNote] = []
        self._points: list[Point] = []
        self._batch = MAX_POINTS
        self._log_offset = 0
        self._failures = 0
        self._malformed_said = 0
        self._outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Send the first beat."""
        self._thread.start()

    @property
    def last_step(self) -> int | None:
        """Highest step that was measured, as far as it has been read."""
        return self._metrics.last_step

    def update(self, *, now: bool = False, **fields: object) -> None:
        """Change fields of the beat; with `now` it goes out at once."""
        with self._lock:
            self._beat = self._beat.model_copy(update=fields)
        if now:
            self._news.set()

    def timing(self, name: str, seconds: float) -> None:
        """Add the duration of one part of the start."""
        with self._lock:
            timings = {**self._beat.timings, name: round(seconds, 4)}
            self._beat = self._beat.model_copy(update={"timings": timings})
        log.info("%s took %.3f s", name, seconds)

    def event(self, text: str) -> None:
        """Tell of something that happened."""
        log.info("event: %s", text)
        sendable = text.encode(errors="replace").decode()  # File names need not be UTF-8.
        with self._lock:
            self._events.append(sendable)
        self._news.set()

    def checkpoint(self, note: CheckpointNote) -> None:
        """Tell of a commit."""
        with self._lock:
            self._notes.append(note)
        self._news.set()

    def wake(self) -> None:
        """Send a beat now."""
        self._news.set()

    def finish(self, outcome: Outcome) -> None:
        """Deliver everything, the outcome last, then end; :attr:`finished` says when."""
        with self._lock:
            self._outcome = outcome
        self._news.set()

    def close(self) -> None:
        """Give up delivering."""
        self._closed = True
        self._news.set()

    def _run(self) -> None:
        while not self._closed and not self.finished.is_set():
            self._news.clear()
            try:
                behind = self._exchange()
            except Exception:
                # The edge of a thread: a mistake in one beat must not end the reports of a run that trains
                # on.
                log.exception("a beat failed")
                self._failures, behind = self._failures + 1, False
            if not behind:
                self._news.wait(self._pause())
        self._link.close()

    def _pause(self) -> float:
        interval = HURRIED_S if self.hurried else INTERVAL_S
        return min(_LONGEST_WAIT_S, interval * 1.5**self._failures)

    def _exchange(self) -> bool:
        """One beat; True where more is waiting to go out."""
        beat, more = self._build()
        try:
            answer = self._link.post(self._path, beat.model_dump_json().encode())
            reply = BeatReply.model_validate_json(answer)
        except FencedError as error:
            self.fenced = error.message
            self._notify()
            self._failed(error)
            return False
        except (UnavailableError, UnauthorizedError, ValidationError) as error:
            self._failed(error)
            return False
        except OrchError as error:
            return self._refused(beat, error)
        progress = bool(beat.points) or reply.log_offset > self._log_offset
        self._delivered(beat, reply)
        return more and progress

    def _build(self) -> tuple[Beat, bool]:
        if len(self._points) < self._batch:
            self._points += self._metrics.read(self._batch - len(self._points))
        self._report_malformed()
        points = self._points[: self._batch]
        data = self._output.read(self._log_offset, MAX_LOG_BYTES)
        with self._lock:
            outcome = self._outcome
            fields: dict[str, object] = {
                "step": self._metrics.last_step if self._metrics.last_step is not None else self._beat.step,
                "points": points,
                "log": LogChunk(offset=self._log_offset, data=data) if data else None,
                "checkpoints": list(self._notes),
                "events": self._events[:_MAX_EVENTS],
            }
            more = (
                len(points) == self._batch
                or len(self._points) > len(points)
                or len(data) == MAX_LOG_BYTES
                or len(self._events) > _MAX_EVENTS
            )
            if outcome and not more and self._log_offset + len(data) >= self._output.size:
                now, ended = self._clock.boottime(), self.program_ended
                age = 0.0 if ended is None else round(max(0.0, now - ended), 4)
                fields |= {"phase": Phase.ENDED, "outcome": outcome, "outcome_age_s": age}
            return self._beat.model_copy(update=fields), more

    def _report_malformed(self) -> None:
        if self._metrics.malformed and not self._malformed_said:
            self._malformed_said = self._metrics.malformed
            self.event(f"the metrics file has a line that is no measurement: {self._metrics.example!r}")

    def _delivered(self, beat: Beat, reply: BeatReply) -> None:
        if self._failures:
            log.info("the controller answers again")
        self._failures, self._batch = 0, MAX_POINTS
        del self._points[: len(beat.points)]
        with self._lock:
            del self._events[: len(beat.events)]
            del self._notes[: len(beat.checkpoints)]
        self._log_offset = reply.log_offset
        complete = beat.outcome is not None and reply.log_offset >= self._output.size
        self.reply = reply
        if complete:
            self.finished.set()
        self._notify()

    def _failed(self, error: Exception) -> None:
        if not self._failures:
            log.warning("%s; points and output are kept until it does", error)
        self._failures += 1

    def _refused(self, beat: Beat, error: OrchError) -> bool:
        """Find the point that the controller cannot take, by halving the beat; leave it out, and say so."""
        log.warning("a beat with %d points was refused: %s", len(beat.points), error)
        if len(beat.points) > 1:
            self._batch = len(beat.points) // 2
            return True
        if beat.points:
            point = self._points.pop(0)
            self.event(f"the controller refuses {point.key} of step {point.step}: {error.message}")
            return True
        self._failures += 1
        return False
