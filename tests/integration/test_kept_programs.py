"""Programs for a GPU as the compiler keeps them. Here they are for the processor, which it does alike."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.in_process import in_process, keep, lift, loaded
from trainer.library import LibraryError
from trainer.programs import graph_of

TABLE, OTHER = torch.linspace(0.0, 1.0, 8), torch.linspace(5.0, 6.0, 8)


def by_tables(x: Tensor, out: Tensor) -> Tensor:
    """With tensors of its own, one of them used twice; changes an argument, as the trainer's programs do."""
    out.copy_(x * TABLE + OTHER + TABLE)
    return x.sum()


def twice(x: Tensor, out: Tensor) -> Tensor:
    out.copy_(x * 2.0)
    return x.sum()


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler about PyTorch
def test_a_kept_program_does_the_same_and_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import standalone_compile

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    arguments = (torch.arange(8.0), torch.zeros(8))
    graph = graph_of(by_tables, arguments, "real")
    tensors = lift(graph)
    assert [tensor.tolist() for tensor in tensors] == [TABLE.tolist(), OTHER.tolist()]
    with torch.no_grad():
        made = standalone_compile(graph, [*arguments, *tensors], dynamic_shapes="from_example_inputs")
    file = tmp_path / "program.made"
    keep(made, tensors, file)
    x, out = torch.arange(8.0) + 1.0, torch.zeros(8)
    loaded(file, "cpu")(x, out)
    assert torch.equal(out, x * TABLE + OTHER + TABLE)

    whole = file.read_bytes()
    for damaged in (whole[:-100], b"x" + whole[1:], b""):
        file.write_bytes(damaged)
        with pytest.raises(LibraryError, match=r"program\.made: "):
            loaded(file, "cpu")


def test_a_program_that_cannot_be_kept_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unkeepable:
        def save(self, *, path: str, format: str) -> None:
            Path(path).write_bytes(b"half")
            raise RuntimeError("there's no artifact to save")

    keep(Unkeepable(), [], tmp_path / "program.made")
    assert not list(tmp_path.iterdir())
    assert "program.made is not kept: there's no artifact to save" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_what_was_kept_and_cannot_be_used_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is not written again: the entry names the hash of what is there."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # is set, and put back afterwards
    arguments = (torch.arange(8.0), torch.zeros(8))
    sources = SimpleNamespace(
        gradient=twice, gradient_arguments=arguments, update=twice, update_arguments=arguments
    )
    monkeypatch.setattr("trainer.in_process.Sources.of", lambda order: sources)
    order: Any = SimpleNamespace(kernels=False, device="cpu")
    safely = _compiling_safely(monkeypatch)
    in_process(order, tmp_path, keeping=True)
    assert safely == [True, True]
    made = tmp_path / "update.made"
    assert made.stat().st_size > 1000
    made.write_bytes(b"useless")
    x, out = torch.arange(8.0) + 1.0, torch.zeros(8)
    in_process(order, tmp_path).update(x, out)
    assert torch.equal(out, x * 2.0)
    assert "update.made: " in capsys.readouterr().err
    assert made.read_bytes() == b"useless"


def _compiling_safely(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each program compiled from now on, whether the way of summing that loses gradients was off."""
    from torch._inductor import config
    from torch._inductor import standalone_compile as compile_it

    found: list[bool] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        found.append(not config.triton.mix_order_reduction)
        return compile_it(*arguments, **options)

    monkeypatch.setattr("torch._inductor.standalone_compile", watched)
    return found
