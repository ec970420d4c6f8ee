from __future__ import annotations

import os
from dataclasses import dataclass

from orchestrator.agent.identity import ProcessId, identify
from orchestrator.agent.triggers import Triggers
from orchestrator.agent.waking import SLEPT_S, WAKING_S, Waking
from orchestrator.clock import SystemClock
from orchestrator.domain.states import Reason
from orchestrator.messages_agent import BeatReply, Order


@dataclass
class Boottime(SystemClock):
    at: float = 100.0

    def boottime(self) -> float:
        return self.at


class Setting:
    def __init__(self, deadline: float | None = None) -> None:
        self.clock = Boottime()
        self.reply: BeatReply | None = None
        self.fence: str | None = None
        me = identify(os.getpid())
        assert me is not None
        self.triggers = Triggers(self.clock, me, deadline, lambda: self.reply, [lambda: self.fence])

    @property
    def reason(self) -> Reason | None:
        self.triggers.look()
        return self.triggers.stop.reason if self.triggers.stop else None


def order(reason: Reason | None, grace_s: float = 30) -> BeatReply:
    return BeatReply(order=Order.STOP, reason=reason, grace_s=grace_s)


def test_nothing_happens_without_a_cause() -> None:
    setting = Setting(deadline=1e9)
    setting.reply = BeatReply()
    assert setting.reason is None


def test_the_deadline_is_on_the_clock_that_goes_on_in_sleep() -> None:
    setting = Setting(deadline=105.0)
    assert setting.reason is None
    setting.clock.at = 105.0
    assert setting.reason is Reason.TIME_LIMIT


def test_the_limit_that_is_met_is_named() -> None:
    setting = Setting(deadline=105.0)
    setting.triggers.limit = (Reason.DEADLINE, "its deadline has passed")
    setting.clock.at = 106.0
    assert setting.reason is Reason.DEADLINE
    assert setting.triggers.stop is not None
    assert setting.triggers.stop.message == "its deadline has passed"


def test_energy_that_is_used_up_ends_it() -> None:
    setting = Setting(deadline=105.0)
    setting.triggers.spent = lambda: "no more kWh"
    assert setting.reason is Reason.ENERGY
    assert setting.triggers.stop is not None
    assert setting.triggers.stop.message == "no more kWh"


def test_an_actor_that_ends_as_the_machine_wakes_does_not_end_the_attempt() -> None:
    setting, said = Setting(), list[str]()
    waking = setting.triggers.waking = Waking(setting.clock, said.append)
    setting.triggers.watched = ProcessId(os.getpid(), 0.0)
    setting.clock.at += SLEPT_S - 0.1
    waking.tick()
    assert not waking.fresh
    setting.clock.at += SLEPT_S  # the machine has slept, and nothing has ticked yet
    assert setting.reason is None
    waking.tick()
    setting.clock.at += 10 * WAKING_S
    assert setting.reason is None  # once excused, it stays so
    assert said == [
        "Ray had given this machine up while it slept; the program goes on",
        f"nothing ran on this machine for {SLEPT_S:.0f} s",
    ]


def test_an_actor_that_ends_at_any_other_time_does() -> None:
    setting = Setting()
    waking = setting.triggers.waking = Waking(setting.clock, lambda text: None)
    setting.triggers.watched = ProcessId(os.getpid(), 0.0)
    setting.clock.at += SLEPT_S
    waking.tick()
    setting.clock.at += WAKING_S - 1
    waking._ticked = setting.clock.at
    assert waking.fresh
    setting.clock.at += 1
    assert setting.reason is Reason.ACTOR_LOST


def test_orders_carry_their_reason_and_grace() -> None:
    setting = Setting()
    setting.reply = order(Reason.MOVED, 12)
    assert setting.reason is Reason.MOVED
    assert setting.triggers.stop is not None
    assert setting.triggers.stop.grace_s == 12


def test_an_order_without_a_reason_is_a_shutdown() -> None:
    setting = Setting()
    setting.reply = order(None)
    assert setting.reason is Reason.SHUTDOWN


def test_the_first_reason_stays_until_a_stronger_one_comes() -> None:
    setting = Setting(deadline=105.0)
    setting.reply = order(Reason.MOVED)
    assert setting.reason is Reason.MOVED
    setting.clock.at = 106.0
    setting.reply = order(Reason.SHUTDOWN)
    assert setting.reason is Reason.MOVED
    setting.reply = order(Reason.CANCELLED)
    assert setting.reason is Reason.CANCELLED
    setting.fence = "attempt 2"
    assert setting.reason is Reason.FENCED
    setting.fence = None
    assert setting.reason is Reason.FENCED


def test_sigterm_and_a_dead_actor() -> None:
    setting = Setting()
    setting.triggers.terminated = True
    assert setting.reason is Reason.SHUTDOWN
    setting = Setting()
    setting.triggers.watched = ProcessId(os.getpid(), 0.0)  # The number belongs to another process now.
    assert setting.reason is Reason.ACTOR_LOST
