"""The outbox of notifications, in a real ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.domain.notice import NoticeKind
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import RunState
from orchestrator.store.ledger import Ledger, Transaction
from tests.unit.records import NOW, run


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def spread(tx: Transaction, *targets: str) -> None:
    for notice in tx.notices.unspread():
        tx.notices.spread(replace(notice, title=f"about {notice.subject}"), targets, NOW)


def later(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def test_each_occurrence_is_recorded_once(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        assert tx.notices.add(NoticeKind.STUCK, "r1", NOW, key="a1")
        assert not tx.notices.add(NoticeKind.STUCK, "r1", NOW, key="a1")
        assert tx.notices.add(NoticeKind.STUCK, "r1", NOW, key="a2")
        assert tx.notices.add(NoticeKind.FAILED, "r1", NOW)
    with ledger.begin() as tx:
        spread(tx, "a", "b")
        assert tx.notices.unspread() == []
        due = tx.notices.due(NOW)
    assert [(one.target, one.notice.key, one.notice.title, one.tries) for one in due] == [
        (target, key, "about r1", 0) for key in ("a1", "a2", "") for target in ("a", "b")
    ]


def test_what_fails_waits_and_what_arrived_is_gone(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        for subject in ("r1", "r2"):
            tx.notices.add(NoticeKind.FAILED, subject, NOW)
        spread(tx, "a", "b")
        first, second = (one.notice.id for one in tx.notices.due(NOW) if one.target == "a")
        tx.notices.arrived("a", [first])
        tx.notices.failed("b", NOW + later(5), "nobody listens there")
    with ledger.read() as tx:
        assert [(one.target, one.notice.id) for one in tx.notices.due(NOW)] == [("a", second)]
        assert tx.notices.next_due(NOW) == NOW + later(5)
        assert [one.tries for one in tx.notices.due(NOW + later(5))] == [1, 0, 1]
        assert tx.notices.backlog() == {"a": (1, ""), "b": (2, "nobody listens there")}


def test_what_is_too_old_is_given_up(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        tx.notices.add(NoticeKind.FAILED, "old", NOW - later(10))
        tx.notices.add(NoticeKind.FAILED, "new", NOW)
        spread(tx, "a", "b")
        tx.notices.failed("a", NOW, "why")
    with ledger.begin() as tx:
        assert tx.notices.give_up(NOW - later(5)) == {"a": (1, "why"), "b": (1, "")}
        assert tx.notices.give_up(NOW - later(5)) == {}
        assert {one.notice.subject for one in tx.notices.due(NOW)} == {"new"}
        tx.notices.keep_targets(["b"])
        assert [one.target for one in tx.notices.due(NOW)] == ["b"]
        tx.notices.forget(NOW + later(1))
        assert not tx.notices.add(NoticeKind.FAILED, "new", NOW), "it waits for b, and is not forgotten"
        assert tx.notices.add(NoticeKind.FAILED, "old", NOW)


def test_the_newest_of_a_kind(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        assert tx.notices.last(NoticeKind.BEST, "e") is None
        for key in ("1", "2"):
            tx.notices.add(NoticeKind.BEST, "e", NOW, key=key)
        tx.notices.add(NoticeKind.BEST, "f", NOW, key="3")
        last = tx.notices.last(NoticeKind.BEST, "e")
    assert last is not None
    assert last.key == "2"


def save(ledger: Ledger, changed: RunRecord) -> None:
    with ledger.begin() as tx:
        tx.save_run(changed)


def test_a_hook_is_committed_with_what_it_follows_or_not_at_all(ledger: Ledger) -> None:
    def note(tx: Transaction) -> None:
        for changed in tx.runs_changed.values():
            if changed.state.final:
                tx.notices.add(NoticeKind.FINISHED, changed.id, NOW)

    refused = [True]

    def refuse(tx: Transaction) -> None:
        if refused:
            raise sqlite3.Error

    ledger.join(note)
    with ledger.begin() as tx:
        ended = replace(tx.add_run(run()), state=RunState.SUCCEEDED)
    ledger.join(refuse)
    with pytest.raises(sqlite3.Error):
        save(ledger, ended)
    with ledger.read() as tx:
        assert tx.notices.unspread() == []
    refused.clear()
    save(ledger, ended)
    with ledger.read() as tx:
        assert [one.subject for one in tx.notices.unspread()] == [ended.id]
