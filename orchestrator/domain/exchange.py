"""What follows when some make room for others: who would start then, and whose their place is meanwhile.

Whose turn it is depends on what everybody holds. So an order to go may make it the turn of somebody else, for
whom there is no room; the one who went would come back, and go again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from orchestrator.domain.demand import Shape
from orchestrator.domain.planner import Desk, Start, plan
from orchestrator.domain.queue import Waiting
from orchestrator.domain.room import Grant


def would_start(
    waiting: Waiting, desk: Desk, gone: Collection[str], placed: Collection[str] = ()
) -> list[Start]:
    """Who would start, down to this run, if the runs `gone` had ended and waited in their old places.

    Whose turn it is depends on what everybody holds, so also on what these hold. The runs `placed` wait no
    more.
    """
    rooms = {ray_id: room.copy() for ray_id, room in desk.rooms.items()}
    back: dict[str, Waiting] = {}
    for room in rooms.values():
        for grant in [grant for grant in room.grants if grant.run_id in gone]:
            room.give_back(grant)
            if grant.run_id not in desk.queue and not grant.stopping:
                back[grant.run_id] = _waits_again(grant, desk.now)
    away = {start.waiting.run_id for start in desk.plan.starts}.difference(gone).union(placed)
    for one in back.values():
        desk.queue.add(one)
    try:
        then = plan(
            desk.queue,
            rooms,
            desk.limits,
            desk.now,
            takes=desk.takes,
            first=desk.first,
            without=away,
            until=waiting.run_id,
        )
    finally:
        for one in back.values():
            desk.queue.remove(one.run_id)
    return then.plan.starts


def _waits_again(grant: Grant, now: float) -> Waiting:
    """Its limits and hours end when they would have: it may go before others as it did."""
    shape, known = Shape((grant.demand,)), grant.ends is not None and not grant.estimated
    lasts = max(0.0, grant.ends - now) if known and grant.ends is not None else None
    who = grant.user, grant.experiment
    return Waiting(grant.run_id, grant.name, grant.order, *who, shape, since=0.0, lasts=lasts)


def still_promised(promised: Mapping[str, str], grants: Iterable[Grant]) -> dict[str, str]:
    """Of victims and the runs for which they make room those that have not gone yet.

    Until then the place is these runs' (`first` of :func:`orchestrator.domain.planner.plan`): with every
    victim that goes, what its user holds changes, and so would whose turn it is.
    """
    going = {grant.run_id for grant in grants if grant.stopping}
    return {victim: first for victim, first in promised.items() if victim in going}
