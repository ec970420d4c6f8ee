"""Programs for a GPU as the compiler keeps them. Here they are for the processor, which it does alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.in_process import keep, loaded
from trainer.library import LibraryError
from trainer.programs import graph_of


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
    with torch.no_grad():
        made = standalone_compile(
            graph_of(twice, arguments, "real"), list(arguments), dynamic_shapes="from_example_inputs"
        )
    file = tmp_path / "program.made"
    keep(made, file)
    x, out = torch.arange(8.0) + 1.0, torch.zeros(8)
    loaded(file)(x, out)
    assert torch.equal(out, x * 2.0)

    whole = file.read_bytes()
    for damaged in (whole[:-100], b"x" + whole[1:], b""):
        file.write_bytes(damaged)
        with pytest.raises(LibraryError, match=r"program\.made: "):
            loaded(file)


def test_a_program_that_cannot_be_kept_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unkeepable:
        def save(self, *, path: str, format: str) -> None:
            Path(path).write_bytes(b"half")
            raise RuntimeError("there's no artifact to save")

    keep(Unkeepable(), tmp_path / "program.made")
    assert not list(tmp_path.iterdir())
    assert "program.made is not kept: there's no artifact to save" in capsys.readouterr().err
