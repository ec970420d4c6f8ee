"""The processor of this machine, as far as Linux tells. Imports no torch."""

from __future__ import annotations

import platform
from pathlib import Path


def name() -> str:
    """The model, or at least the architecture."""
    return _field("model name") or platform.processor() or platform.machine()


def flags() -> set[str]:
    """Features by Linux's names; empty on other systems."""
    return set(_field("flags").split())


def multiplies_bf16() -> bool:
    """Whether it multiplies bf16 matrices in hardware: by AVX512-BF16 or AMX."""
    return bool({"avx512_bf16", "amx_bf16"} & flags())


def _field(key: str) -> str:
    """What is told about the first processor under that name; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
