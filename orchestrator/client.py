"""The Python API: one method per route of the controller, plus following a run and its output.

>>> with Client.from_settings() as client:
...     submitted = client.submit(SubmitRequest(spec=spec, key="night-17"))
...     for update in client.follow(submitted.run_id):
...         print(update)

Every method raises a class of :mod:`orchestrator.errors`, never an exception of the HTTP library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orchestrator.calls import POLL_S, Calls
from orchestrator.errors import UnavailableError
from orchestrator.messages import LogPage, RunDetail

PATIENCE_S = 300.0
"""How long following goes on while the controller does not answer."""
LOG_WAIT_S = 10.0
"""How long the controller may hold a request for output that is not there yet."""


@dataclass(frozen=True)
class Away:
    """The controller does not answer at the moment; following goes on."""

    seconds: float
    """Since it last answered."""
    error: UnavailableError


@dataclass
class LogPlace:
    """Where a reader of a run's output is."""

    attempt: int = 0
    """0: before the first attempt."""
    offset: int = 0
    rank: int = 0


class Client(Calls):
    """One controller. Use it as a context manager; not safe to share between threads."""

    def follow(
        self, ref: str, *, every_s: float = POLL_S, patience_s: float = PATIENCE_S
    ) -> Iterator[RunDetail | Away]:
        """The run again and again until it is final, which is yielded last.

        While the controller does not answer (it may be restarting) Away is yielded instead, and
        UnavailableError raised after `patience_s` of that. The first look is not repeated.
        """
        detail = self.run(ref)
        heard = self._clock.monotonic()
        while True:
            yield detail
            if detail.run.state.final:
                return
            self._clock.sleep(every_s)
            answer = self._look(detail.run.id, heard, patience_s)
            while isinstance(answer, Away):
                yield answer
                self._clock.sleep(every_s)
                answer = self._look(detail.run.id, heard, patience_s)
            detail, heard = answer, self._clock.monotonic()

    def _look(self, run: str, heard: float, patience_s: float) -> RunDetail | Away:
        try:
            return self.run(run)
        except UnavailableError as e:
            seconds = self._clock.monotonic() - heard
            if seconds > patience_s:
                raise
            return Away(seconds, e)

    def stream_logs(
        self,
        ref: str,
        attempt: int | None = None,
        *,
        follow: bool = False,
        place: LogPlace | None = None,
        notice: Callable[[Away], None] = lambda away: None,
        patience_s: float = PATIENCE_S,
    ) -> Iterator[bytes]:
        """The program's output in order: of one attempt, or of all attempts one after another.

        It begins at `place`, which is moved along, so that a second call can go on where this one ended. With
        `follow` it goes on until the attempt, or the run, is over. Nothing is yielded twice or left out
        when the controller restarts meanwhile; `notice` is called then, and UnavailableError raised after
        `patience_s`.
        """
        view = self.run(ref).run
        run, place = view.id, place or LogPlace()
        if not place.attempt:
            place.attempt = attempt or min(1, view.attempt)
        for page in self._pages(run, place, follow, notice, patience_s):
            if page.data and page.attempt == place.attempt:
                yield page.data
                place.offset = page.next_offset
            elif attempt is None and place.attempt < page.last_attempt:
                place.attempt, place.offset = place.attempt + 1, 0
            elif not follow or (page.ended and (attempt is not None or self.run(run).run.state.final)):
                return

    def _pages(
        self,
        run: str,
        place: LogPlace,
        follow: bool,
        notice: Callable[[Away], None],
        patience_s: float,
    ) -> Iterator[LogPage]:
        """Pages from wherever `place` points, for ever; at most one empty answer a second."""
        heard = self._clock.monotonic()
        while True:
            asked = self._clock.monotonic()
            try:
                wait_s = LOG_WAIT_S if follow else 0.0
                page = self.logs(run, place.attempt or None, place.offset, wait_s, place.rank)
            except UnavailableError as e:
                away = Away(asked - heard, e)
                if not follow or away.seconds > patience_s:
                    raise
                notice(away)
                self._clock.sleep(POLL_S)
                continue
            heard = self._clock.monotonic()
            yield page
            if not page.data and page.attempt == place.attempt and heard - asked < POLL_S:
                self._clock.sleep(POLL_S)
