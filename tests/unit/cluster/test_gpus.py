"""GPUs through a made-up NVML: whose memory is whose, and who keeps them busy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster.gpus import MEMORY_STEP, Gpus, Ours, load_nvml
from orchestrator.domain.fleet import GpuState

GIB = 2**30
TOTAL, RESERVED = 24 * GIB, GIB // 2


class NVMLError(Exception):
    """As pynvml's."""


class NVMLError_NotSupported(NVMLError):
    """As pynvml's."""


@dataclass
class Card:
    """One GPU and what its driver tells."""

    compute: dict[int, int | None] = field(default_factory=dict)
    graphics: dict[int, int | None] = field(default_factory=dict)
    unlisted: int = 0
    """Bytes of processes that the list does not show."""
    use: dict[int, int] = field(default_factory=dict)
    """Percent of the time, by process."""
    busy: int = 0
    """Percent of the time, of all."""
    lost: bool = False
    old_driver: bool = False
    lists: bool = True
    tells_use: bool = True


class Nvml:
    """What the sampler uses of pynvml."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLError_NotSupported
    nvmlMemory_v2 = 2

    def __init__(self, *cards: Card) -> None:
        self.cards = cards
        self.asked_since: list[int] = []

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        if index >= len(self.cards):
            raise NVMLError("not found")
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        return self.cards[int(uuid.removeprefix("GPU-"))]

    def nvmlDeviceGetName(self, card: Card) -> str:
        return "RTX"

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: int | None = None) -> Any:
        if card.lost:
            raise NVMLError("GPU is lost")
        if version is not None and card.old_driver:
            raise NVMLError("function not found")
        used = card.unlisted + sum(size or 0 for size in {**card.compute, **card.graphics}.values())
        if version is None:
            return SimpleNamespace(total=TOTAL, used=used + RESERVED, free=TOTAL - used - RESERVED)
        return SimpleNamespace(total=TOTAL, reserved=RESERVED, used=used, free=TOTAL - used - RESERVED)

    def _list(self, card: Card, processes: dict[int, int | None]) -> list[Any]:
        if not card.lists:
            raise NVMLError_NotSupported("no list")
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in processes.items()]

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        return self._list(card, card.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[Any]:
        return self._list(card, card.graphics)

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:
        return SimpleNamespace(gpu=card.busy)

    def nvmlDeviceGetProcessUtilization(self, card: Card, since: int) -> list[Any]:
        self.asked_since.append(since)
        if not card.tells_use:
            raise NVMLError_NotSupported("no process utilization")
        return [SimpleNamespace(pid=pid, timeStamp=since + 10, smUtil=use) for pid, use in card.use.items()]


MINE, GAME, DESKTOP = 100, 200, 300


def ours(on_gpus: bool = True) -> Ours:
    return Ours(lambda pid: pid == MINE, lambda: on_gpus)


def read(card: Card, sees_all: bool = True, on_gpus: bool = True) -> GpuState:
    (state,) = Gpus(Nvml(card), ["0"], sees_all).read(ours(on_gpus))
    return state


def test_memory_of_others_is_told_from_ours() -> None:
    card = Card(compute={MINE: 8 * GIB, GAME: 2 * GIB}, graphics={DESKTOP: GIB, GAME: 2 * GIB})
    state = read(card)
    assert (state.index, state.name, state.memory, state.foreign_memory) == (
        0,
        "RTX",
        TOTAL - RESERVED,
        3 * GIB,
    )


def test_what_the_driver_keeps_is_nobodys() -> None:
    assert read(Card()).foreign_memory == 0
    old = read(Card(old_driver=True, compute={GAME: GIB}))
    assert (old.memory, old.foreign_memory) == (TOTAL, GIB)


def test_small_changes_do_not_change_the_report() -> None:
    first, second = (read(Card(compute={GAME: GIB + more})).foreign_memory for more in (1, MEMORY_STEP - 1))
    assert first == second == GIB + MEMORY_STEP
    assert read(Card(compute={GAME: TOTAL - RESERVED})).foreign_memory <= TOTAL - RESERVED


def test_memory_of_ours_that_is_just_being_taken_is_never_foreign() -> None:
    """The list and the sum are read one after another; between them a program takes gigabytes."""
    assert read(Card(compute={MINE: GIB}, unlisted=7 * GIB)).foreign_memory == 0


@pytest.mark.parametrize("hidden", [{"unlisted": 5 * GIB}, {"compute": {4711: 5 * GIB}}])
def test_where_processes_cannot_be_told_apart_what_was_there_before_ours_counts(
    hidden: dict[str, Any],
) -> None:
    """In a container NVML shows numbers of another namespace, or no processes at all."""
    card = Card(unlisted=2 * GIB, busy=50)
    nvml = Nvml(card)
    gpus = Gpus(nvml, ["0"], sees_all=False)
    (alone,) = gpus.read(ours(on_gpus=False))
    assert (alone.foreign_memory, alone.foreign_use) == (2 * GIB, 0.5)
    card.unlisted, card.compute = hidden.get("unlisted", 0), hidden.get("compute", {})
    (shared,) = gpus.read(ours(on_gpus=True))
    assert (shared.foreign_memory, shared.foreign_use) == (2 * GIB, 0.0), "the 5 GiB may well be ours"
    card.unlisted, card.compute = GIB, {}
    (less,) = gpus.read(ours(on_gpus=True))
    assert less.foreign_memory == GIB
    card.unlisted = 3 * GIB
    (after,) = gpus.read(ours(on_gpus=False))
    assert after.foreign_memory == 3 * GIB


def test_a_container_that_shows_our_processes_is_believed() -> None:
    card = Card(compute={MINE: 4 * GIB}, unlisted=GIB)
    assert read(card, sees_all=False).foreign_memory == GIB


@pytest.mark.parametrize("change", [{"lists": False}, {"compute": {MINE: None, GAME: None}}])
def test_a_driver_that_does_not_tell_sizes_is_like_one_that_hides(change: dict[str, Any]) -> None:
    card = Card(**{"unlisted": 2 * GIB, **change})
    assert read(card, on_gpus=True).foreign_memory == 0
    if card.lists:
        card.compute = {GAME: None}
    assert read(card, on_gpus=False).foreign_memory == 2 * GIB


def test_use_by_others_is_told_from_ours() -> None:
    alone = Card(compute={GAME: GIB}, busy=70)
    assert read(alone).foreign_use == 0.7
    shared = Card(compute={MINE: GIB, GAME: GIB}, busy=100, use={MINE: 60, GAME: 30, DESKTOP: 10})
    assert read(shared).foreign_use == 0.4
    shared.tells_use = False
    assert read(shared).foreign_use == 0.0


def test_use_is_asked_for_since_the_last_look() -> None:
    nvml = Nvml(Card(compute={MINE: GIB}, use={GAME: 300}))
    gpus = Gpus(nvml, ["0"], True)
    assert [gpus.read(ours())[0].foreign_use for _ in range(3)] == [1.0] * 3
    assert nvml.asked_since == [0, 10, 20]


def test_a_gpu_that_is_lost_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    cards = [Card(lost=True), Card(compute={GAME: GIB})]
    gpus = Gpus(Nvml(*cards), ["0", "GPU-1", "7"], True)
    for _ in range(3):
        assert [(state.index, state.foreign_memory) for state in gpus.read(ours())] == [(1, GIB)]
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
    cards[0].lost = False
    assert [state.index for state in gpus.read(ours())] == [0, 1]


@pytest.mark.parametrize("fails", [False, True])
def test_nvml_is_optional(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    module = SimpleNamespace(NVMLError=NVMLError, nvmlInit=_raise if fails else lambda: None)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert load_nvml() is (None if fails else module)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert load_nvml() is None


def _raise() -> Callable[[], None]:
    raise NVMLError("driver not loaded")
