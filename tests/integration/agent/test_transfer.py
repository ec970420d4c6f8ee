"""What is told of checkpoints that are under way."""

from __future__ import annotations

import pytest

from orchestrator.agent.transfer import Meter
from orchestrator.cli.render import transfer
from orchestrator.messages import Transfer
from tests.clocks import TurnedClock


def moving(done: int) -> Transfer:
    return Transfer(direction="up", step=7, done=done, total=100)


def test_a_long_transfer_is_told_once_a_second() -> None:
    clock, told = TurnedClock(), list[Transfer | None]()
    meter = Meter(told.append, clock)
    with meter.measuring("up", 7, 100) as moved:
        for _ in range(8):
            clock.sleep(0.5)
            moved(10)
    assert told == [moving(40), moving(60), moving(80), None]


def test_a_short_one_is_not_worth_telling() -> None:
    clock, told = TurnedClock(), list[Transfer | None]()
    with Meter(told.append, clock).measuring("up", 7, 100) as moved:
        clock.sleep(1.5)
        moved(100)
    assert told == []


def test_it_is_over_also_where_it_failed() -> None:
    clock, told = TurnedClock(), list[Transfer | None]()
    meter = Meter(told.append, clock)

    def send() -> None:
        with meter.measuring("up", 7, 100) as moved:
            clock.sleep(3.0)
            moved(1)
            raise OSError("away")

    with pytest.raises(OSError, match="away"):
        send()
    assert told == [moving(1), None]


def test_in_words() -> None:
    assert transfer(None) == ""
    assert transfer(moving(45)) == "sends step 7: 45 % of 100 B"
    assert transfer(Transfer(direction="down", done=5 << 20)) == "fetches checkpoint: 5.0 MiB"
