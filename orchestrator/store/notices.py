"""What is to be told to people, in the ledger: committed with what it tells of, kept until it has arrived.

A notice is *spread* once: put into words, with a delivery for each target that wants it. A delivery is
removed when it has arrived or was given up; a notice stays for a while, so that it is not told twice. Targets
are known by name. Their addresses are secrets and never come here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import RowMapping

from orchestrator.domain.notice import Delivery, Notice, NoticeKind
from orchestrator.store import tables

_N, _D = tables.notices, tables.deliveries


class Notices:
    """The notices as one transaction of the ledger sees them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(
        self,
        kind: NoticeKind,
        subject: str,
        at: datetime,
        *,
        key: str = "",
        name: str = "",
        experiment: str = "",
        title: str = "",
        body: str = "",
    ) -> bool:
        """Record a notice; False where this (kind, subject, key) is recorded already."""
        values = {"kind": kind.value, "subject": subject, "key": key, "name": name, "experiment": experiment}
        values |= {"at": at.isoformat(), "title": title, "body": body}
        added = self._connection.execute(insert(_N).values(**values).on_conflict_do_nothing())
        return added.rowcount > 0

    def unspread(self, limit: int = 200) -> list[Notice]:
        """Notices that nobody has been chosen for yet, oldest first."""
        return [
            _notice(row) for row in self._all(select(_N).where(~_N.c.spread).order_by(_N.c.id).limit(limit))
        ]

    def spread(self, notice: Notice, targets: Sequence[str], due: datetime) -> None:
        """Record a notice's words, and that it is to go to these targets."""
        values = {"title": notice.title, "body": notice.body, "spread": True}
        self._connection.execute(_N.update().where(_N.c.id == notice.id).values(**values))
        for target in targets:
            row = {"notice": notice.id, "target": target, "tries": 0, "due": due.isoformat(), "error": ""}
            self._connection.execute(insert(_D).values(**row).on_conflict_do_nothing())

    def last(self, kind: NoticeKind, subject: str) -> Notice | None:
        """The newest notice of this kind about a subject."""
        where = (_N.c.kind == kind.value) & (_N.c.subject == subject)
        found = self._all(select(_N).where(where).order_by(_N.c.id.desc()).limit(1))
        return _notice(found[0]) if found else None

    # ---- deliveries

    def due(self, now: datetime, limit: int = 1000) -> list[Delivery]:
        """Deliveries to try now, oldest notice first."""
        late = self._all(_joined().where(_D.c.due <= now.isoformat()).order_by(_N.c.id).limit(limit))
        return [Delivery(_notice(row), row["target"], row["tries"]) for row in late]

    def next_due(self, now: datetime) -> datetime | None:
        """When the next delivery that is not due yet will be."""
        (row,) = self._all(select(func.min(_D.c.due).label("due")).where(_D.c.due > now.isoformat()))
        return datetime.fromisoformat(row["due"]) if row["due"] else None

    def arrived(self, target: str, notices: Collection[int]) -> None:
        """These have reached the target."""
        self._connection.execute(_D.delete().where((_D.c.target == target) & _D.c.notice.in_(notices)))

    def failed(self, target: str, due: datetime, error: str) -> None:
        """The target could not be reached: everything for it waits until `due`."""
        values = {"tries": _D.c.tries + 1, "due": due.isoformat(), "error": error}
        self._connection.execute(_D.update().where(_D.c.target == target).values(**values))

    def give_up(self, before: datetime) -> dict[str, tuple[int, str]]:
        """Drop deliveries of notices older than this; for each target how many, and the last error."""
        old = _N.c.at < before.isoformat()
        lost = self._count(old)
        if lost:
            ids = select(_N.c.id).where(old)
            self._connection.execute(_D.delete().where(_D.c.notice.in_(ids)))
        return lost

    def keep_targets(self, names: Collection[str]) -> None:
        """Drop deliveries to all other targets."""
        self._connection.execute(_D.delete().where(_D.c.target.not_in(names)))

    def backlog(self) -> dict[str, tuple[int, str]]:
        """How many notices wait for each target, and the last error; targets without any are left out."""
        return self._count()

    def forget(self, before: datetime) -> None:
        """Remove notices of before that wait for nothing."""
        waiting = select(_D.c.notice)
        done = and_(_N.c.spread, _N.c.at < before.isoformat(), _N.c.id.not_in(waiting))
        self._connection.execute(_N.delete().where(done))

    def _count(self, *where: Any) -> dict[str, tuple[int, str]]:
        columns = (_D.c.target, func.count().label("count"), func.max(_D.c.error).label("error"))
        joined = select(*columns).join(_N, _N.c.id == _D.c.notice).where(*where).group_by(_D.c.target)
        return {row["target"]: (row["count"], row["error"]) for row in self._all(joined)}

    def _all(self, query: Select[Any]) -> Sequence[RowMapping]:
        return self._connection.execute(query).mappings().all()


def _joined() -> Select[Any]:
    return select(_N, _D.c.target, _D.c.tries).join(_D, _D.c.notice == _N.c.id)


def _notice(row: RowMapping) -> Notice:
    return Notice(
        id=row["id"],
        kind=NoticeKind(row["kind"]),
        subject=row["subject"],
        key=row["key"],
        name=row["name"],
        experiment=row["experiment"],
        at=datetime.fromisoformat(row["at"]),
        title=row["title"],
        body=row["body"],
    )
