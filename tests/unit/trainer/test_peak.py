"""The device's measured peak and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainer import peak
from trainer.device import Hardware
from trainer.flops import published_flops
from trainer.peak import gemm_peak, measured_flops

H100 = "NVIDIA H100 80GB HBM3"


def hardware(threads: int = 1, dtype: torch.dtype = torch.float32) -> Hardware:
    return Hardware(torch.device("cpu"), dtype, threads, deterministic=True)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "peaks.json"


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the next measurements will give."""
    coming: list[float] = []
    monkeypatch.setattr(peak, "measured_flops", lambda hardware: coming.pop(0))
    return coming


@pytest.fixture
def several_threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_a_real_measurement(several_threads: int) -> None:
    state = torch.default_generator.get_state()
    one = measured_flops(hardware(), budget_s=0.05)
    assert 1e8 < one < 1e13
    assert measured_flops(hardware(threads=3), budget_s=0.05) > 1.5 * one
    assert torch.equal(torch.default_generator.get_state(), state)
    assert torch.get_num_threads() == several_threads


def test_it_is_measured_once_per_kind(file: Path, rates: list[float]) -> None:
    rates += [1e11, 2e11, 3e9]
    assert [gemm_peak(hardware()) for _ in range(2)] == [1e11, 1e11]
    assert [gemm_peak(hardware(threads=2)) for _ in range(2)] == [2e11, 2e11]
    assert [gemm_peak(hardware(dtype=torch.bfloat16)) for _ in range(2)] == [3e9, 3e9]
    assert not rates
    assert sorted(json.loads(file.read_text()).values()) == [3e9, 1e11, 2e11]
    assert [path.name for path in file.parent.iterdir()] == ["peaks.json"]


def test_another_pytorch_is_measured_anew(
    file: Path, rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates += [1e11, 3e11]
    gemm_peak(hardware())
    monkeypatch.setattr(torch, "__version__", "9.0")
    assert gemm_peak(hardware()) == 3e11


def test_the_better_of_two_measurements_is_kept(file: Path, rates: list[float]) -> None:
    rates += [1e11, 4e11, 2e11]
    assert gemm_peak(hardware()) == 1e11
    assert gemm_peak(hardware(), again=True) == 4e11
    assert gemm_peak(hardware(), again=True) == 4e11
    assert gemm_peak(hardware()) == 4e11


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"%s": -1}', '{"%s": "fast"}', '{"%s": NaN}', "\x80"])
def test_a_damaged_file_counts_as_empty(file: Path, rates: list[float], content: str) -> None:
    file.parent.mkdir()
    file.write_text(content.replace("%s", peak._key(hardware())), encoding="latin-1")
    rates += [5e11]
    assert gemm_peak(hardware()) == 5e11
    assert gemm_peak(hardware()) == 5e11


def test_a_cache_that_cannot_be_written_is_done_without(file: Path, rates: list[float]) -> None:
    file.parent.write_text("a file where the folder would be")
    rates += [1e11, 2e11]
    assert [gemm_peak(hardware()), gemm_peak(hardware())] == [1e11, 2e11]


def test_the_data_sheet_bounds_what_is_believed(
    file: Path, rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hardware, "name", lambda self: H100)
    rates += [7e15, 7e13]
    assert gemm_peak(hardware()) == pytest.approx(66.9e12)
    file.write_text(json.dumps({peak._key(hardware()): 9e15}))
    assert gemm_peak(hardware()) == 7e13  # a GPU may be a little faster than its data sheet


def test_published_peaks() -> None:
    assert published_flops(H100, torch.bfloat16) == pytest.approx(989.4e12)
    assert published_flops(H100, torch.float32) == pytest.approx(66.9e12)
    assert published_flops(H100, torch.float16) is None
    assert published_flops("NVIDIA H100", torch.bfloat16) is None
