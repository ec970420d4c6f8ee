"""Tells people what happens, wherever they are. Nothing waits for it.

Ends of runs are recorded as notices in the very transaction that ends the run, the rest by
:meth:`Notifier.tell`. A thread puts notices into words and hands them to a few others, one for each target at
a time, which start the sending processes. What does not arrive is tried again with growing pauses. A crash at
any point loses nothing; between the arrival and its record it makes one message arrive twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from operator import attrgetter
from typing import Final

from orchestrator.clock import Clock
from orchestrator.domain.notice import Delivery, Notice, NoticeKind
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import RunState
from orchestrator.errors import OrchError
from orchestrator.notify import texts
from orchestrator.notify.sending import Message, Sender, Sent
from orchestrator.notify.targets import Target, TargetFile
from orchestrator.store.ledger import Ledger, Transaction

log = logging.getLogger(__name__)

Words = Callable[[RunRecord], texts.Words]
"""Puts the end of a run into words."""

FIRST_S: Final = 5.0
LONGEST_S: Final = 600.0
"""Pauses after failures double from the first to the longest."""
GIVE_UP: Final = timedelta(hours=24)
_REMEMBER: Final = timedelta(days=30)
_SETTLE: Final = timedelta(seconds=1)
"""The last measurements of a run arrive about when it ends."""
_SINGLY: Final = 3
"""If more wait for a target, they go as one message."""
_WORKERS: Final = 4
_IDLE_S: Final = 60.0
_STOP_S: Final = 5.0

_KINDS: Final = {
    RunState.SUCCEEDED: NoticeKind.FINISHED,
    RunState.FAILED: NoticeKind.FAILED,
    RunState.CANCELLED: NoticeKind.CANCELLED,
}


class Notifier:
    """See the module's description."""

    def __init__(
        self, ledger: Ledger, targets: TargetFile, words: Words, sender: Sender, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._targets = targets
        self._words = words
        self._sender = sender
        self._clock = clock
        self._problem = ""
        self._lookouts: list[tuple[NoticeKind, Callable[[], float]]] = []
        self._busy: set[str] = set()
        """Targets that are being sent to."""
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="notify")
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        self._tidied = clock.now()
        ledger.join(self._record)
        ledger.watch(self._follow)

    def look_out(self, kind: NoticeKind, look: Callable[[], float]) -> None:
        """Call this now and then while somebody wants to be told of `kind`; it answers after how many seconds
        to call it again."""
        self._lookouts.append((kind, look))

    def start(self) -> None:
        """Begin to tell; what an earlier controller could not, too."""
        self._thread.start()

    def stop(self) -> None:
        """Let what is being sent arrive, for some seconds; the rest is for the next controller."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        timer = threading.Timer(_STOP_S, self._sender.stop)
        timer.start()
        self._pool.shutdown(wait=True, cancel_futures=True)
        timer.cancel()

    def wake(self) -> None:
        """Something changed: look now."""
        self._wake.set()

    # ---- what there is to tell

    def tell(
        self,
        kind: NoticeKind,
        subject: str,
        title: str,
        body: str = "",
        links: Mapping[str, str] | None = None,
        *,
        key: str = "",
        name: str = "",
        experiment: str = "",
    ) -> bool:
        """Tell everybody who wants to know, once per (kind, subject, key). Durable when it returns; False
        where it was told before or nobody wants it. Not for use within a transaction of the ledger.

        `subject` is the id of a run or sweep; `name` and `experiment` are what targets choose by.
        """
        if not self.wanted(kind, name, experiment):
            return False
        text = "\n".join(filter(None, [body, *texts.link_lines(links or {})]))
        with self._ledger.begin() as ledger:
            added = ledger.notices.add(
                kind,
                subject,
                self._clock.now(),
                key=key,
                name=name,
                experiment=experiment,
                title=title,
                body=text,
            )
        self.wake()
        return added

    def wanted(self, kind: NoticeKind, name: str, experiment: str) -> bool:
        """Whether anybody wants to be told of this."""
        return any(target.wants(kind, name, experiment) for target in self._known())

    def _known(self) -> Sequence[Target]:
        """The targets; none while the file cannot be used, which is said once."""
        try:
            found, problem = self._targets.read(), ""
        except OrchError as error:
            found, problem = (), f"{error.message}; {error.remedy}" if error.remedy else error.message
        except OSError as error:
            found, problem = (), f"the file of targets cannot be read: {error.strerror}"
        if problem and problem != self._problem:
            log.warning("nobody is notified: %s", problem)
        self._problem = problem
        return found

    def _record(self, transaction: Transaction) -> None:
        for run in transaction.runs_changed.values():
            kind, spec = _KINDS.get(run.state), run.spec
            if kind is None or not self.wanted(kind, spec.name, spec.experiment):
                continue
            # How a sweep goes is told by its best trials and its end, and by what fails.
            if kind == NoticeKind.FAILED or transaction.sweeps.trial_of(run.id) is None:
                at = self._clock.now()
                transaction.notices.add(kind, run.id, at, name=spec.name, experiment=spec.experiment)

    def _follow(self, transaction: Transaction) -> None:
        if any(run.state in _KINDS for run in transaction.runs_changed.values()):
            self.wake()

    # ---- the thread

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                pause = self.look()
            except Exception:
                # The edge of a thread: what could not be told now is tried again.
                log.exception("notifying failed; it is tried again")
                pause = FIRST_S
            self._wake.wait(pause)
            self._wake.clear()

    def look(self) -> float:
        """One round; seconds until the next."""
        targets = self._known()
        pauses = [_IDLE_S]
        if targets:
            pauses += [self._guarded(look) for kind, look in self._lookouts if _any_wants(targets, kind)]
        if not self._problem:
            pauses.append(self._spread(targets))
            self._tidy(targets)
            pauses.append(self._deliver(targets))
        return max(0.05, min(pauses))

    def _guarded(self, look: Callable[[], float]) -> float:
        """A lookout that fails must not keep back what there is to tell."""
        try:
            return look()
        except Exception:
            log.exception("a lookout failed; it is tried again")
            return _IDLE_S

    def _spread(self, targets: Sequence[Target]) -> float:
        with self._ledger.read() as ledger:
            found = ledger.notices.unspread()
        now = self._clock.now()
        for notice in found:
            if notice.title or now - notice.at >= _SETTLE:
                worded = notice if notice.title else self._worded(notice)
                names = [
                    one.name for one in targets if one.wants(notice.kind, notice.name, notice.experiment)
                ]
                with self._ledger.begin() as ledger:
                    ledger.notices.spread(worded, names, now)
        return 0.3 if found else _IDLE_S

    def _worded(self, notice: Notice) -> Notice:
        with self._ledger.read() as ledger:
            run = ledger.run(notice.subject)
        try:
            title, body = self._words(run)
        except OrchError as error:
            log.warning("run %s: told without details: %s", run.id, error.message)
            title, body = texts.ended(texts.Facts(run))
        return replace(notice, title=title, body=body)

    def _tidy(self, targets: Sequence[Target]) -> None:
        """Give up what is too old and forget what is long done, now and then."""
        now = self._clock.now()
        if now - self._tidied < timedelta(seconds=_IDLE_S):
            return
        self._tidied = now
        with self._ledger.begin() as ledger:
            ledger.notices.keep_targets([target.name for target in targets])
            lost = ledger.notices.give_up(now - GIVE_UP)
            ledger.notices.forget(now - _REMEMBER)
        for name, (count, error) in lost.items():
            log.error("%d notifications for %s were given up after 24 h: %s", count, name, error)

    # ---- delivering

    def _deliver(self, targets: Sequence[Target]) -> float:
        """Hand out what is due; seconds until something will be."""
        now = self._clock.now()
        with self._ledger.read() as ledger:
            due = ledger.notices.due(now)
            next_due = ledger.notices.next_due(now)
        by_name = {target.name: target for target in targets}
        for name, group in groupby(sorted(due, key=attrgetter("target")), key=attrgetter("target")):
            target = by_name.get(name)
            if target is not None and self._take(name):
                self._pool.submit(self._send_all, target, list(group))
        # What is due and cannot be sent waits for its target, which wakes us.
        return _IDLE_S if next_due is None else (next_due - now).total_seconds()

    def _take(self, name: str) -> bool:
        with self._lock:
            if name in self._busy:
                return False
            self._busy.add(name)
            return True

    def _send_all(self, target: Target, deliveries: Sequence[Delivery]) -> None:
        try:
            for batch in _batches(deliveries):
                if self._stop.is_set() or not self._send_batch(target, batch):
                    break
        except Exception:
            log.exception("notifying %s failed; it is tried again", target.name)
            self._stop.wait(FIRST_S)
        finally:
            with self._lock:
                self._busy.discard(target.name)
            self.wake()

    def _send_batch(self, target: Target, batch: Sequence[Delivery]) -> bool:
        """Send one message, and record what came of it."""
        notices = [delivery.notice for delivery in batch]
        sent = self.send(target, notices)
        if self._stop.is_set() and not sent.arrived:  # ended by us, perhaps
            return False
        now = self._clock.now()
        with self._ledger.begin() as ledger:
            if sent.arrived:
                ledger.notices.arrived(target.name, [notice.id for notice in notices])
            else:
                tries = max(delivery.tries for delivery in batch)
                pause = min(LONGEST_S, FIRST_S * 2 ** min(tries, 10))
                ledger.notices.failed(target.name, now + timedelta(seconds=pause), sent.text)
        if not sent.arrived:
            log.warning("%s was not notified: %s", target.name, sent.text)
        return sent.arrived

    def send(self, target: Target, notices: Sequence[Notice]) -> Sent:
        """Send notices as one message, now; nothing is recorded."""
        first = notices[0]
        title, body = (first.title, first.body) if len(notices) == 1 else texts.digest(notices)
        try:
            url = target.address()
        except OrchError as error:
            return Sent(False, error.message, 0.0)
        return self._sender.send(url, Message(title, body, texts.type_of(first.kind)))


def _any_wants(targets: Sequence[Target], kind: NoticeKind) -> bool:
    return any(kind in target.on for target in targets)


def _batches(deliveries: Sequence[Delivery]) -> list[Sequence[Delivery]]:
    if len(deliveries) > _SINGLY:
        return [deliveries]
    return [[delivery] for delivery in deliveries]
