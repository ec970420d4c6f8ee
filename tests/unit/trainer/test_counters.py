"""Energy counters, against files and a library that stand in for the real ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.counters import nvml_counter, rapl

RANGE = 262_143_328_850


def zone(folder: Path, number: str, name: str, energy: int) -> Path:
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return path


def use(path: Path, microjoules: int) -> None:
    energy = int((path / "energy_uj").read_text())
    (path / "energy_uj").write_text(f"{(energy + microjoules) % RANGE}\n")


def test_packages_and_their_memory_count_once(tmp_path: Path) -> None:
    zones = {
        name: zone(tmp_path, number, name, 10**6)
        for number, name in (
            ("0", "package-0"),
            ("0:0", "core"),
            ("0:1", "dram"),
            ("1", "package-1"),
            ("2", "psys"),
        )
    }
    found = rapl(tmp_path)
    assert found.note == "RAPL, 3 zones of the whole machine"
    assert found.counter is not None
    assert found.counter.joules() == 0.0
    for name, microjoules in (("package-0", 5), ("core", 4), ("dram", 2), ("package-1", 3), ("psys", 11)):
        use(zones[name], microjoules * 10**6)
    assert found.counter.joules() == 10.0
    assert found.counter.joules() == 10.0


def test_a_counter_that_begins_again(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", RANGE - 10**6)
    counter = rapl(tmp_path).counter
    assert counter is not None
    for expected in (3.0, 6.0, 9.0):
        use(package, 3 * 10**6)
        assert counter.joules() == expected


def test_no_rapl(tmp_path: Path) -> None:
    missing = rapl(tmp_path)
    assert missing.counter is None
    assert "this machine has no RAPL" in missing.note
    package = zone(tmp_path, "0", "package-0", 0)
    (package / "energy_uj").unlink()  # as good as unreadable, also for root
    unreadable = rapl(tmp_path)
    assert unreadable.counter is None
    assert "RAPL cannot be read" in unreadable.note


def test_rapl_that_becomes_unreadable(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", 0)
    counter = rapl(tmp_path).counter
    assert counter is not None
    (package / "energy_uj").unlink()
    assert counter.joules() is None


class NVMLError(Exception):
    pass


class FakeNvml(SimpleNamespace):
    """Answers by `energy` (mJ) and `power` (mW); None is an error."""

    NVMLError = NVMLError

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        return self._answer(self.energy)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return self._answer(self.power)

    def _answer(self, value: int | None) -> int:
        if value is None:
            raise NVMLError("Not Supported")
        return value


def test_nvml_counts_energy() -> None:
    nvml = FakeNvml(energy=7_000, power=None)
    counter = nvml_counter(nvml, None)
    nvml.energy = 9_500
    assert (counter.joules(), counter.source) == (2.5, "NVML, total energy of the GPU")
    nvml.energy = None
    assert counter.joules() is None


def test_nvml_that_knows_only_power() -> None:
    nvml, now = FakeNvml(energy=None, power=100_000), [5.0]
    counter = nvml_counter(nvml, None, clock=lambda: now[0])
    now[0], nvml.power = 7.0, 300_000
    assert counter.joules() == pytest.approx(400.0)
    now[0] = 8.0
    assert counter.joules() == pytest.approx(700.0)


def test_nvml_that_knows_neither() -> None:
    with pytest.raises(NVMLError):
        nvml_counter(FakeNvml(energy=None, power=None), None)
