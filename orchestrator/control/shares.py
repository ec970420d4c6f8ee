"""What part of a GPU an attempt has, as far as its node says how large the GPU is."""

from __future__ import annotations

from orchestrator.control.fleet import Fleet
from orchestrator.domain.limits import share_of
from orchestrator.domain.records import AttemptRecord


def gpu_share(fleet: Fleet, attempt: AttemptRecord) -> float:
    """1 for whole GPUs and where the node has not told the size of its GPUs."""
    node = next((node for node in fleet.nodes if node.name == attempt.node), None)
    gpus = {gpu.index: gpu.memory for gpu in node.report.gpus} if node else {}
    granted = attempt.gpu_ids[0] if attempt.gpu_ids else None
    memory = gpus.get(granted) if granted is not None else next(iter(gpus.values()), None)
    return share_of(attempt.variant, memory)
