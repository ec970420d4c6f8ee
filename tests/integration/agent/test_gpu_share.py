"""A share of a GPU: what the program is told, and what PyTorch beside our interpreter is told."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent import gpu_share as module
from orchestrator.agent.gpu_share import gpu_share
from orchestrator.agent.job import AgentJob
from orchestrator.agent.launch import granted_gpus, node_gpus
from orchestrator.contract import EnvContext, gpu_allowance
from orchestrator.errors import SetupError
from orchestrator.spec.models import RunSpec, Variant

GIB = 2**30
OURS = [sys.executable, "train.py"]


def job(total: int | None = 24 * GIB, memory: str | None = "6GiB", **fields: Any) -> AgentJob:
    return AgentJob(
        run_id="r",
        attempt=1,
        spec=RunSpec.model_validate({"name": "t", "command": {"argv": ["true"]}}),
        variant=Variant(pool="p", gpus=1, gpu_memory=memory),  # type: ignore[arg-type]
        node="n",
        controller_url="http://127.0.0.1:1",
        store_uri="file:///srv",
        gpu_total=total,
        **fields,
    )


def test_a_share_is_told_and_a_whole_gpu_is_not() -> None:
    assert gpu_share(job(memory=None), OURS, {}) == {}
    told = gpu_share(job(), ["./train"], {})
    assert told == {"ORCH_GPU_MEMORY": str(6 * GIB)}
    assert EnvContext({"ORCH_RUN_ID": "r", **told}).gpu_memory == 6 * GIB
    assert EnvContext({"ORCH_RUN_ID": "r"}).gpu_memory is None


def test_pytorch_is_told_the_fraction_that_is_left_for_it() -> None:
    fraction = gpu_allowance(6 * GIB) / (24 * GIB)
    setting = f"per_process_memory_fraction:{fraction:.6f}"
    assert 0.2 < fraction < 0.25
    assert gpu_share(job(), OURS, {})["PYTORCH_CUDA_ALLOC_CONF"] == setting
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        told = gpu_share(job(), OURS, {name: "expandable_segments:True"})
        assert told["PYTORCH_CUDA_ALLOC_CONF"] == f"expandable_segments:True,{setting}"
    assert gpu_share(job(total=GIB), OURS, {})["PYTORCH_CUDA_ALLOC_CONF"].endswith(":1.000000")


def test_a_program_that_sets_it_itself_is_left_alone() -> None:
    assert "PYTORCH_CUDA_ALLOC_CONF" not in gpu_share(
        job(), OURS, {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.1"}
    )


@pytest.mark.parametrize(("torch", "told"), [("2.10.0", False), ("2.11.0+cu128", True), ("3.0", True)])
def test_an_older_pytorch_would_not_start_with_it(
    monkeypatch: pytest.MonkeyPatch, torch: str, told: bool
) -> None:
    monkeypatch.setattr(module, "version", lambda name: torch)
    assert ("PYTORCH_CUDA_ALLOC_CONF" in gpu_share(job(), OURS, {})) is told


def test_pytorch_here_knows_it() -> None:
    """Its CPU build ignores the variable, so this looks at what its allocator for GPUs is built from."""
    found = find_spec("torch")
    assert found is not None
    assert found.origin is not None
    header = Path(found.origin).parent / "include/c10/cuda/CUDAAllocatorConfig.h"
    assert '"per_process_memory_fraction"' in header.read_text()


def test_no_share_of_a_small_one_is_nothing() -> None:
    assert gpu_allowance(6 * GIB) == 6 * GIB - (512 << 20)
    assert gpu_allowance(GIB // 2) == GIB // 4


def test_indices_are_those_of_the_nodes_own_list() -> None:
    gpus = node_gpus({"ORCH_NODE_GPUS": "3,GPU-aaaa,5", "CUDA_VISIBLE_DEVICES": ""})
    assert granted_gpus(job(gpu_ids=(2, 1)), gpus) == ["5", "GPU-aaaa"]
    assert granted_gpus(job(), gpus) == []
    with pytest.raises(SetupError, match="GPU 3 was granted, but node n has 3"):
        granted_gpus(job(gpu_ids=(0, 3)), gpus)
    assert node_gpus({}) == []
