"""A share of a GPU in the trainer; CUDA is played."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from orchestrator.contract import EnvContext, gpu_allowance
from trainer import memory
from trainer.compiling import Compiler, share_left
from trainer.config import TrainerConfig
from trainer.device import choose_hardware
from trainer.library import LibraryError
from trainer.orders import Order

GIB = 2**30


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """What PyTorch was told, on a machine with two GPUs of 24 GiB."""
    told: list[tuple[float, int]] = []
    properties = SimpleNamespace(total_memory=24 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, index: told.append((fraction, index))
    )
    return told


def choose(device: str = "cuda", **env: str) -> None:
    context = EnvContext({"ORCH_RUN_ID": "r", "ORCH_DEVICE": device, "ORCH_CPUS": "1", **env})
    choose_hardware(TrainerConfig(compile=True), context)


def test_a_process_keeps_to_its_share(limits: list[tuple[float, int]]) -> None:
    choose(ORCH_GPU_MEMORY=str(6 * GIB))
    assert limits == [(gpu_allowance(6 * GIB) / (24 * GIB), 0)]


def test_a_share_as_large_as_the_gpu_is_all_of_it(limits: list[tuple[float, int]]) -> None:
    choose(ORCH_GPU_MEMORY=str(99 * GIB))
    assert limits == [(1.0, 0)]


def test_without_a_share_nothing_is_limited(limits: list[tuple[float, int]]) -> None:
    choose()
    choose("cpu", ORCH_GPU_MEMORY=str(6 * GIB))
    assert limits == []


def test_a_rank_limits_the_gpu_that_it_uses(
    limits: list[tuple[float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    choose(ORCH_GPU_MEMORY=str(6 * GIB))
    assert [index for _, index in limits] == [1]


def test_too_little_memory_names_the_share() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has more. Figures")
    told = memory.gpu_shortage(error, 6 * GIB)
    assert told is not None
    assert told.startswith("this run's share is gpu_memory: 6.00GiB. CUDA out of memory. Tried to allocate")
    assert memory.gpu_shortage(error) == "CUDA out of memory. Tried to allocate 1.00 GiB"


@pytest.mark.parametrize(("share", "taken", "left"), [(6, 2.0, 3.5), (24, 0.0, 23.5), (2, 0.5, 1.0)])
def test_compiling_makes_do_with_what_training_leaves_of_a_share(
    monkeypatch: pytest.MonkeyPatch, share: int, taken: float, left: float
) -> None:
    monkeypatch.setenv("ORCH_GPU_MEMORY", str(share * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: int(taken * GIB))
    assert share_left() == {"ORCH_GPU_MEMORY": str(int(left * GIB))}


def test_a_share_that_is_used_up_is_not_compiled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_GPU_MEMORY", str(2 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: GIB)
    with pytest.raises(LibraryError, match="gpu_memory leaves 512 MiB to compile in, 1024 are needed"):
        share_left()


def test_without_a_share_compiling_is_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_GPU_MEMORY", raising=False)
    assert share_left() == {}


def test_the_compiler_is_told_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []

    def refuse(*arguments: Any, env: dict[str, str], **options: Any) -> None:
        told.append(env)
        raise OSError("no")

    monkeypatch.setenv("ORCH_GPU_MEMORY", str(6 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: GIB)
    monkeypatch.setattr("trainer.compiling.subprocess.Popen", refuse)
    for device in ("cuda", "cpu"):
        with pytest.raises(LibraryError, match="cannot start the compiler: no"):
            Compiler(cast(Order, SimpleNamespace(device=device)))
    assert [env["ORCH_GPU_MEMORY"] for env in told] == [str(9 * GIB // 2), str(6 * GIB)]
