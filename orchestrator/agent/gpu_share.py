"""A share of a GPU's memory, told to the program and where possible enforced in it.

The built-in trainer keeps to `ORCH_GPU_MEMORY` by itself. For other programs PyTorch's allocator can be told
through its environment, from 2.11 on. An older one would refuse to start with a setting that it does not
know, so only programs that run with our interpreter, whose PyTorch we know, are told this way.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from orchestrator.agent.job import AgentJob
from orchestrator.contract import gpu_allowance

_SETTING = "per_process_memory_fraction"
_SINCE = (2, 11)


def gpu_share(job: AgentJob, argv: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """Variables for a program that has a share of a GPU; `env` is what it gets otherwise."""
    share = job.variant.gpu_memory
    if share is None:
        return {}
    told = {"ORCH_GPU_MEMORY": str(int(share))}
    if job.spec.command is None or job.gpu_total is None or not (argv[0] == sys.executable and _knows()):
        return told
    # PyTorch reads only the first of these that is set.
    before = env.get("PYTORCH_CUDA_ALLOC_CONF") or env.get("PYTORCH_ALLOC_CONF") or ""
    if _SETTING in before:
        return told
    fraction = min(1.0, gpu_allowance(int(share)) / job.gpu_total)
    setting = f"{_SETTING}:{fraction:.6f}"
    return {**told, "PYTORCH_CUDA_ALLOC_CONF": f"{before},{setting}" if before else setting}


def _knows() -> bool:
    """Whether the PyTorch beside our interpreter knows the setting."""
    try:
        major, minor, *_ = version("torch").split(".")
        return (int(major), int(minor)) >= _SINCE
    except (PackageNotFoundError, ValueError):
        return False
