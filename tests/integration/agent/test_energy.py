"""The energy of an attempt, exactly: counters, processes and time are the tests'."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent import energy
from orchestrator.agent.energy import Devices, EnergyMeter, EnergyWatch, Rates, pause
from orchestrator.agent.job import AgentJob
from orchestrator.domain.energy import Energy, EnergySource
from orchestrator.domain.states import Reason
from orchestrator.spec.models import Variant
from tests.clocks import TurnedClock
from tests.integration.agent.bench import Bench
from tests.integration.agent.programs import train
from tests.support import wait_until
from tests.unit.records import spec
from trainer.counters import Energy as Device
from trainer.counters import rapl

RANGE_J = 262_143.328850
NONE = Device(None, "nothing is measured")
MEASURED, ESTIMATED, MIXED = EnergySource


@dataclass
class Used:
    """Seconds of processors."""

    mine: float = 0.0
    all: float | None = 0.0

    def ours(self) -> float:
        return self.mine

    def machine(self) -> float | None:
        return self.all


class Zone:
    """A package of RAPL."""

    def __init__(self, root: Path, joules: float = 0.0) -> None:
        self.root = root
        self.folder = root / "intel-rapl:0"
        self.folder.mkdir(parents=True)
        (self.folder / "name").write_text("package-0\n")
        (self.folder / "max_energy_range_uj").write_text(f"{round(RANGE_J * 1e6)}\n")
        self.at(joules)

    def at(self, joules: float) -> None:
        (self.folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")

    def gone(self) -> None:
        (self.folder / "energy_uj").unlink()

    @property
    def device(self) -> Device:
        return rapl(self.root)


@dataclass
class Gpu:
    """A GPU's counter."""

    total: float | None = 0.0
    source: str = "NVML"
    most_watts: float = 2000.0
    longest_s: float = float("inf")

    def joules(self) -> float | None:
        return self.total


@dataclass
class Setting:
    devices: Devices
    rates: Rates = field(default_factory=lambda: Rates(cpu=10.0, gpu=100.0))
    used: Used = field(default_factory=Used)
    clock: TurnedClock = field(default_factory=TurnedClock)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meter = EnergyMeter(self.devices, self.used, self.rates, self.said.append, self.clock)

    def after(self, seconds: float, mine: float, others: float = 0.0) -> Energy | None:
        """What is known once so much time has passed, and was used of the processors."""
        self.clock.at += seconds
        self.used.mine += mine
        if self.used.all is not None:
            self.used.all += mine + others
        return self.meter.look()


def test_a_package_is_shared_by_the_time_of_processors(tmp_path: Path) -> None:
    zone = Zone(tmp_path, 1000)
    it = Setting(Devices(zone.device))
    zone.at(1100)
    assert it.after(2, mine=3, others=1) == Energy(75, MEASURED)
    zone.at(1200)
    assert it.after(2, mine=0, others=4) == Energy(75, MEASURED)
    zone.at(1230)
    assert it.after(2, mine=0.1) == Energy(105, MEASURED)  # alone it has all, also what an idle package takes


def test_a_part_is_not_more_than_the_whole(tmp_path: Path) -> None:
    zone = Zone(tmp_path)
    it = Setting(Devices(zone.device))
    zone.at(50)
    assert it.after(2, mine=2, others=-0.01) == Energy(50, MEASURED)
    zone.at(60)
    assert it.after(2, mine=0, others=0) == Energy(50, MEASURED)


def test_a_counter_that_begins_again_at_its_end(tmp_path: Path) -> None:
    zone = Zone(tmp_path, RANGE_J - 100)
    it = Setting(Devices(zone.device))
    zone.at(50)
    used = it.after(2, mine=1)
    assert used is not None
    assert (used.joules, used.source) == (pytest.approx(150), MEASURED)


def test_nothing_that_can_be_read_is_estimated() -> None:
    it = Setting(Devices(NONE))
    assert it.after(2, mine=0, others=4) is None
    assert it.after(2, mine=3, others=1) == Energy(30, ESTIMATED)
    assert it.after(100, mine=0) == Energy(30, ESTIMATED)
    assert it.said == []


def test_a_machine_that_does_not_tell_its_busy_time(tmp_path: Path) -> None:
    zone = Zone(tmp_path)
    it = Setting(Devices(zone.device), used=Used(all=None))
    zone.at(500)
    assert it.after(2, mine=1) == Energy(10, ESTIMATED)


def test_a_counter_that_vanishes_is_said_once_and_counts_again_when_it_is_back(tmp_path: Path) -> None:
    zone = Zone(tmp_path)
    it = Setting(Devices(zone.device))
    zone.at(100)
    it.after(2, mine=1)
    zone.gone()
    assert it.after(2, mine=1) == Energy(110, MIXED)
    assert it.after(2, mine=1) == Energy(120, MIXED)
    zone.at(300)
    assert it.after(2, mine=1) == Energy(130, MIXED)  # from here on there is something to subtract
    zone.at(350)
    assert it.after(2, mine=1) == Energy(180, MIXED)
    zone.gone()
    it.after(2, mine=1)
    assert len(it.said) == 1
    assert "RAPL, 1 zones" in it.said[0]


def test_a_machine_that_slept(tmp_path: Path) -> None:
    """RAPL begins at zero; what looks like the end of its range is more than any package could use. The
    monotonic clock stood still meanwhile."""
    zone = Zone(tmp_path, 200_000)
    it = Setting(Devices(zone.device))
    zone.at(200_100)
    it.after(2, mine=1)
    zone.at(10)
    assert it.after(2, mine=1) == Energy(110, MIXED)
    zone.at(60)
    assert it.after(2, mine=1) == Energy(160, MIXED)


def test_an_agent_that_was_stopped(tmp_path: Path) -> None:
    """The program went on: what it used counts, as long as the counter can have begun anew only once."""
    zone = Zone(tmp_path, RANGE_J - 1000)
    it = Setting(Devices(zone.device))
    zone.at(9000)
    used = it.after(250, mine=400, others=400)
    assert used is not None
    assert (used.joules, used.source) == (pytest.approx(5000), MEASURED)
    zone.at(9500)
    used = it.after(3600, mine=1000)
    assert used is not None
    assert (used.joules, used.source) == (pytest.approx(15_000), MIXED)


def test_gpus_count_by_the_share_that_was_granted() -> None:
    first, second = Gpu(100.0), Gpu(0.0)
    it = Setting(Devices(NONE, [Device(first, "NVML"), Device(second, "NVML")], share=0.25))
    first.total, second.total = 500.0, 200.0
    assert it.after(2, mine=0) == Energy(150, MEASURED)
    second.total = None
    first.total = 600.0
    assert it.after(2, mine=0) == Energy(150 + 25 + 50, MIXED)


def test_a_gpu_without_a_counter_is_estimated_by_time() -> None:
    it = Setting(Devices(NONE, [NONE], share=0.5))
    assert it.after(4, mine=2) == Energy(200 + 20, ESTIMATED)


def test_a_gpu_that_was_reset() -> None:
    gpu = Gpu(1e6)
    it = Setting(Devices(NONE, [Device(gpu, "NVML")]))
    gpu.total = 5.0
    assert it.after(2, mine=0) == Energy(200, ESTIMATED)
    gpu.total = 105.0
    assert it.after(2, mine=0) == Energy(300, MIXED)


def test_a_counter_may_tell_late() -> None:
    gpu = Gpu(0.0)
    it = Setting(Devices(NONE, [Device(gpu, "NVML")]))
    gpu.total = 40.0
    assert it.after(0.001, mine=0) == Energy(40, MEASURED)


# ---------------------------------------------------------------------- the node


def test_what_the_node_says_of_its_watts() -> None:
    said: list[str] = []
    assert Rates.of_node({"ORCH_CPU_WATTS": "7.5", "ORCH_GPU_WATTS": "320"}, said.append) == Rates(7.5, 320)
    assert Rates.of_node({}, said.append) == Rates()
    assert said == []
    assert Rates.of_node({"ORCH_CPU_WATTS": "many"}, said.append) == Rates()
    assert said == ["ORCH_CPU_WATTS is 'many', which is no number of watts: 5 W counts"]


def job(variant: Variant, **values: Any) -> AgentJob:
    return AgentJob(
        run_id="r", attempt=1, spec=spec(placement=[variant]), variant=variant, node="n", controller_url="u",
        store_uri="s", **values,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "more", "seen", "expected"),
    [
        ({}, {}, [], ([], 1.0)),
        ({"gpus": 2}, {}, ["0", "3"], (["0", "3"], 1.0)),
        ({"gpus": 1, "gpu_memory": "6GB"}, {"gpu_total": int(24e9)}, ["1"], (["1"], 0.25)),
        ({"gpus": 1, "ranks": 3}, {"local_rank": 1, "world": 3}, ["5", "6", "7"], (["6"], 1.0)),
    ],
)
def test_a_rank_answers_for_its_own_gpus(
    monkeypatch: pytest.MonkeyPatch,
    variant: dict[str, Any],
    more: dict[str, Any],
    seen: list[str],
    expected: tuple[list[str], float],
) -> None:
    monkeypatch.setattr(energy, "gpu", lambda name: Device(None, name))
    found = Devices.of_node(job(Variant(pool="gpu", **variant), **more), seen)
    assert ([device.note for device in found.gpus], found.share) == expected


def test_looking_takes_a_thousandth_of_a_processor_at_most() -> None:
    assert pause(0.0001) == 2.0
    assert pause(0.01) == 10.0
    assert pause(5.0) == 30.0


class Meter:
    """Stands in for the meter of a watch."""

    def __init__(self, look: Callable[[], Energy | None]) -> None:
        self.look = look


def test_the_end_does_not_wait_for_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_LAST_LOOK_S", 0.05)
    stuck = threading.Event()
    told: list[Energy] = []
    watch = EnergyWatch(lambda: Meter(stuck.wait), told.append)  # type: ignore[arg-type, return-value]
    watch.start()
    watch.end()
    assert told == []
    stuck.set()


def test_the_last_look_is_at_the_end() -> None:
    told: list[Energy] = []
    made = Meter(lambda: Energy(5.0 + len(told), MEASURED))
    watch = EnergyWatch(lambda: made, told.append)  # type: ignore[arg-type, return-value]
    watch.start()
    watch.end()
    assert told == [Energy(5.0, MEASURED)]


# ---------------------------------------------------------------------- real agents

BURN = "import time\nwhile time.process_time() < {}: pass\n"


def test_an_attempt_tells_its_energy_with_the_outcome(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without RAPL, or where this user cannot read it, by the time of its processors."""
    monkeypatch.setenv("ORCH_CPU_WATTS", "100")
    bench.start(bench.script(BURN.format(1.0)))
    bench.wait_outcome()
    last = bench.controller.beats[-1].energy
    assert last is not None
    if rapl().counter is None:
        assert last.source is ESTIMATED
        assert 100 <= last.joules < 400  # the agent and the program's start count as well
    assert "energy: " in bench.folder().agent_log.read_text()
    known = [beat.energy.joules for beat in bench.controller.beats if beat.energy]
    assert known == sorted(known)


def test_a_setting_that_cannot_be_meant_stops_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_CPU_WATTS", "-3")
    bench.start(bench.script("print('well')"))
    assert bench.wait_outcome().reason is Reason.COMPLETED
    assert any("ORCH_CPU_WATTS" in event for event in bench.controller.events)


def test_the_node_ends_what_has_used_up_its_energy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the controller is away."""
    monkeypatch.setenv("ORCH_CPU_WATTS", "1000")
    bench.start({**bench.script(train(steps=100_000, every=5, pause=0.01)), "kwh": 0.5}, joules_left=200.0)
    bench.wait_step(3)
    bench.controller.stop()
    wait_until(lambda: bench.saved_outcome() != {}, 20, bench.evidence)
    bench.controller.start()
    outcome = bench.wait_outcome()
    assert (outcome.reason, outcome.message) == (Reason.ENERGY, "it has used up its 0.5 kWh (kwh)")
    assert outcome.exit_code == 75
    assert bench.steps() != []
