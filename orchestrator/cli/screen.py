"""What following a run looks like: a live picture in a terminal, calm lines elsewhere."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console, Group
from rich.text import Text

from orchestrator.cli import render
from orchestrator.client import Away
from orchestrator.clock import Clock
from orchestrator.domain.states import RunState
from orchestrator.messages import EventView, RunDetail

CALM_S = 15.0
"""Pause between two progress lines that do not go to a terminal."""
QUIET = frozenset({"submitted", "placed", "checkpoint", *(state.value for state in RunState)})
"""Kinds of events that are not news to somebody who watches: the picture or the summary says it."""
BAR_CELLS = 40


class Screen(Protocol):
    """Where a followed run is shown."""

    def show(self, detail: RunDetail) -> None:
        """The run as it is now."""
        ...

    def away(self, away: Away) -> None:
        """The controller does not answer."""
        ...

    def close(self) -> None:
        """Nothing more will be shown."""
        ...


def path(detail: RunDetail) -> str:
    """Nodes in the order in which the run was on them, such as `laptop → gpu`."""
    nodes = [attempt.node for attempt in detail.attempts]
    return " → ".join(node for i, node in enumerate(nodes) if i == 0 or nodes[i - 1] != node)


def bar(step: int | None, target: int | None, cells: int = BAR_CELLS) -> Text:
    """Steps done of the target, in half cells."""
    halves = round(2 * cells * min(1.0, (step or 0) / target)) if target else 0
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text.assemble((done, "cyan"), ("─" * (cells - len(done)), "bright_black"))


def state_line(detail: RunDetail) -> str:
    """State and, where there is one, why."""
    run = detail.run
    return f"{run.state.value}: {render.one_line(run.message)}" if run.message else run.state.value


def measures(detail: RunDetail) -> list[str]:
    """What is measured: losses and speed; only what is known."""
    run = detail.run
    parts = [
        f"loss {render.loss(run.loss)}" if run.loss is not None else "",
        f"val {render.loss(run.val_loss)}" if run.val_loss is not None else "",
        render.rate(run.tokens_per_s) if run.tokens_per_s is not None else "",
        render.transfer(run.transfer),
    ]
    return [part for part in parts if part]


class News:
    """Tells events that were not there at the last look."""

    def __init__(self) -> None:
        self._seen: set[EventView] = set()

    def of(self, detail: RunDetail) -> list[EventView]:
        """Events that are new since the last call and that somebody who watches wants to know."""
        fresh = [event for event in detail.events if event not in self._seen]
        self._seen.update(fresh)
        return [event for event in fresh if event.kind not in QUIET]


class LiveScreen:
    """Three lines at the bottom of the terminal; news scroll above them."""

    def __init__(self, console: Console, clock: Clock) -> None:
        from rich.live import Live

        self._console = console
        self._clock = clock
        self._news = News()
        self._last: RunDetail | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, detail: RunDetail) -> None:
        """Draw the run anew, with its news above."""
        self._last = detail
        for event in self._news.of(detail):
            at = render.clock(event.at, self._clock.now())
            news = Text.assemble((at, "dim"), "  ", render.one_line(event.text))
            self._console.print(news, soft_wrap=False)
        self._draw(detail, Text("   ".join(measures(detail)), no_wrap=True, overflow="ellipsis"))

    def away(self, away: Away) -> None:
        """Say so in place of the measurements."""
        text = f"{away.error.message}; trying again ({away.seconds:.0f} s)"
        if self._last:
            self._draw(self._last, Text(text, "yellow", no_wrap=True, overflow="ellipsis"))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def _draw(self, detail: RunDetail, below: Text) -> None:
        run = detail.run
        head = Text.assemble((run.name, "bold"), "  ", (path(detail), "magenta"), "  ")
        head.append_text(Text(state_line(detail), render.STATE_STYLES.get(run.state.value, "")))
        head.no_wrap, head.overflow = True, "ellipsis"
        left = f"  {render.duration(run.eta_s)} left" if run.eta_s is not None else ""
        share = f"  {100 * (run.step or 0) // run.target_steps} %" if run.target_steps else ""
        steps = Text(f"  {render.progress(run.step, run.target_steps)}{share}{left}")
        cells = max(10, min(BAR_CELLS, self._console.width - steps.cell_len - 1))
        middle = bar(run.step, run.target_steps, cells) if run.target_steps else Text("step")
        self._live.update(Group(head, middle + steps, below), refresh=True)


class PlainScreen:
    """One line for each event, and one about progress from time to time."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._news = News()
        self._said: tuple[str, float] | None = None
        self._away = False

    def show(self, detail: RunDetail) -> None:
        """Print what is new; progress at a calm rate."""
        if self._away:
            self._print("the controller answers again")
        self._away = False
        for event in self._news.of(detail):
            self._print(render.one_line(event.text))
        if not detail.run.state.final:
            self._progress(detail)

    def away(self, away: Away) -> None:
        """Say it once."""
        if not self._away:
            self._print(f"{away.error.message}; trying again")
        self._away = True

    def close(self) -> None:
        """Nothing is held."""

    def _progress(self, detail: RunDetail) -> None:
        run = detail.run
        state, now = state_line(detail), self._clock.monotonic()
        if self._said and self._said[0] == state and now - self._said[1] < CALM_S:
            return
        self._said = (state, now)
        steps = f"step {render.progress(run.step, run.target_steps)}" if run.step is not None else ""
        self._print("  ".join(part for part in (state, path(detail), steps, *measures(detail)) if part))

    def _print(self, text: str) -> None:
        self._console.print(Text(text))
