"""What kind of processor decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.trainer.support import SteeredContext, tiny, write_text
from trainer import processor
from trainer.device import choose_hardware

CPUINFO = "processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu {extra}\n\nflags\t: fpu\n"


def pretend(patch: pytest.MonkeyPatch, text: str | None) -> None:
    def read(path: Path, encoding: str) -> str:
        assert str(path) == "/proc/cpuinfo"
        if text is None:
            raise FileNotFoundError(path)
        return text

    patch.setattr(processor.Path, "read_text", read)


@pytest.mark.parametrize(
    ("extra", "dtype"),
    [("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx512f amx_tile", torch.float32)],
)
def test_auto_is_bfloat16_where_it_is_multiplied_in_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, dtype: torch.dtype
) -> None:
    config = tiny(write_text(tmp_path), device="cpu", dtype="auto")
    pretend(monkeypatch, CPUINFO.format(extra=extra))
    assert processor.name() == "A Processor"
    assert choose_hardware(config, SteeredContext(tmp_path)).dtype == dtype


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    assert processor.flags() == set()
    assert not processor.multiplies_bf16()
    assert processor.name()
