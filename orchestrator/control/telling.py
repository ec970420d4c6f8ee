"""The use cases around notifications: who is told, and trying it out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from orchestrator.clock import Clock
from orchestrator.control.notifier import Notifier
from orchestrator.domain.notice import Notice, NoticeKind
from orchestrator.errors import NotFoundError, Problem, SpecError
from orchestrator.messages import NotifyRequest, NotifySent, NotifyView
from orchestrator.notify.sending import Sender
from orchestrator.notify.targets import Target, TargetFile, free_name, pick
from orchestrator.store.ledger import Ledger


class Telling:
    """Manages targets. Answers never contain an address."""

    def __init__(
        self, targets: TargetFile, notifier: Notifier, sender: Sender, ledger: Ledger, clock: Clock
    ) -> None:
        self._targets = targets
        self._notifier = notifier
        self._sender = sender
        self._ledger = ledger
        self._clock = clock

    def targets(self) -> list[NotifyView]:
        """Who is told what, and what waits for them. SetupError where the file cannot be used."""
        with self._ledger.read() as ledger:
            backlog = ledger.notices.backlog()
        return [_view(target, *backlog.get(target.name, (0, ""))) for target in self._targets.read()]

    def add(self, request: NotifyRequest) -> NotifyView:
        """Tell somebody from now on. SpecError where Apprise does not understand the address."""
        name = request.name or free_name(self._targets.read(), request.url)
        given = request.model_dump(exclude={"name"}) | {"name": name}
        try:
            target = Target.model_validate(given)
        except ValidationError as error:
            told = error.errors(include_input=False, include_url=False)
            raise SpecError(
                [Problem("", 0, 0, ".".join(map(str, e["loc"])), str(e["msg"])) for e in told]
            ) from None
        self._sender.check(target.address())
        self._targets.add(target)
        self._notifier.wake()
        return _view(target)

    def remove(self, name: str) -> NotifyView:
        """Tell somebody nothing any more, what waits included. NotFoundError names those there are."""
        gone = self._targets.remove(name)
        with self._ledger.begin() as ledger:
            ledger.notices.keep_targets([target.name for target in self._targets.read()])
        return _view(gone)

    def test(self, names: Sequence[str]) -> list[NotifySent]:
        """Send a message to these targets, all where none is named, and say what came of it."""
        there = self._targets.read()
        chosen = pick(there, names) if names else list(there)
        if not chosen:
            raise NotFoundError("nobody is told anything", remedy="`orch notify add` adds a target")
        with ThreadPoolExecutor(min(8, len(chosen))) as pool:
            return list(pool.map(self._try, chosen))

    def _try(self, target: Target) -> NotifySent:
        kinds = ", ".join(kind.value for kind in target.on)
        body = f"This is a test. You will be told here: {kinds}."
        notice = Notice(0, NoticeKind.BEST, "", "", "", "", self._clock.now(), "orch: it works", body)
        sent = self._notifier.send(target, [notice])
        return NotifySent(
            name=target.name, shown=target.shown, arrived=sent.arrived, text=sent.text, seconds=sent.seconds
        )


def _view(target: Target, waiting: int = 0, error: str = "") -> NotifyView:
    return NotifyView(
        name=target.name,
        shown=target.shown,
        on=list(target.on),
        runs=list(target.runs),
        experiments=list(target.experiments),
        waiting=waiting,
        error=error,
    )
