"""The live picture of the cluster: top."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import CLUSTER, Json, connect, out, print_json, width
from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import UnavailableError

if TYPE_CHECKING:
    from orchestrator.cli.keyboard import Keyboard
    from orchestrator.cli.picture import Picture
    from orchestrator.client import Client
    from orchestrator.messages_top import TopView

TIMEOUT_S = 10.0
"""Longest wait for a look; then it is said that the controller does not answer."""
_LINES = 50
"""Of a picture that does not go to a terminal, at most."""
INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(rich_help_panel=CLUSTER)(top)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.2, max=3600, help="Pause between two looks.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Watch the cluster: what executes and how its losses fall, what waits and why, machines, sweeps,
    schedules, energy.

    `q` or Ctrl-C ends it. Where the output is no terminal, one picture is printed. FROM says when a run's
    hours begin; with `~` about when there is room for it, with `<` the latest time of that; others may go
    first.

    - `orch top`
    - `orch top --once`, `orch top --json`
    """
    with connect(timeout_s=TIMEOUT_S) as client:
        view = look(client, SYSTEM)
        if as_json:
            print_json(view)
        elif once or not out.is_terminal or out.is_dumb_terminal:
            _print_once(view)
        else:
            _watch(client, view, every)


def look(client: Client, clock: Clock) -> TopView:
    """The cluster now, with the energy since midnight here."""
    midnight = clock.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    return client.overview(midnight)


def _print_once(view: TopView) -> None:
    from rich.text import Text

    from orchestrator.cli.picture import frame

    lines = frame(view, width(), out.height - 1 if out.is_terminal else _LINES, view.at)
    while lines and not lines[-2].plain.strip():
        del lines[-2]
    for line in lines:
        line.rstrip()
    out.print(Text("\n").join(lines))


def _watch(client: Client, view: TopView, every_s: float) -> None:
    from rich.live import Live

    from orchestrator.cli.keyboard import INTERRUPT, QUIT, keyboard

    with keyboard() as keys:
        looker = Looker(client, view, every_s, keys, SYSTEM)
        with Live(looker.picture(), console=out, screen=True, auto_refresh=False) as live:
            looker.start()
            while not {QUIT, INTERRUPT} & set(said := keys.wait(1.0).lower()) and looker.error is None:
                live.update(looker.picture(), refresh=True)
        looker.end()
    if looker.error is not None:
        raise looker.error
    if INTERRUPT in said:
        raise typer.Exit(INTERRUPTED)


class Looker:
    """Looks again and again in a thread of its own, so that keys are answered while the controller is not."""

    def __init__(self, client: Client, view: TopView, every_s: float, keys: Keyboard, clock: Clock) -> None:
        self.error: Exception | None = None
        """What cannot pass by itself; nothing is looked at after that."""
        self._client = client
        self._every_s = every_s
        self._keys = keys
        self._clock = clock
        self._seen: tuple[TopView, float] = view, clock.monotonic()
        self._away: UnavailableError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="look", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Look no more; a look that is under way is not waited for."""
        self._ended.set()

    def picture(self) -> Picture:
        """The last view; while the controller does not answer, with that."""
        from orchestrator.cli.picture import Picture

        view, at = self._seen
        away, seconds = self._away, self._clock.monotonic() - at
        trouble = "" if away is None else f"no answer for {seconds:.0f} s, trying again: {away.message}"
        return Picture(view, view.at + timedelta(seconds=0 if away is None else seconds), trouble)

    def _run(self) -> None:
        while self.error is None and not self._ended.wait(self._every_s):
            try:
                self.look()
            except Exception as e:  # noqa: BLE001 - the edge of a thread: raised where it is heard
                self.error = e
            self._keys.wake()

    def look(self) -> None:
        """Ask once."""
        try:
            view = look(self._client, self._clock)
        except UnavailableError as e:
            self._away = e
        else:
            self._seen, self._away = (view, self._clock.monotonic()), None
