"""What a compiler gets wrong is noticed before it is used. The programs here are not compiled."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.support import start, tiny, write_text
from trainer import compiling
from trainer.compiled import order_for
from trainer.library import LibraryError
from trainer.orders import Order, Programs, Sources
from trainer.verify import coarsest, fill, verify


@dataclass
class Case:
    order: Order
    sources: Sources

    def verify(
        self, gradient: Callable[..., Any] | None = None, update: Callable[..., Any] | None = None
    ) -> None:
        plain = self.sources
        verify(self.order, plain, Programs(gradient or plain.gradient, update or plain.update))


@pytest.fixture(params=["nanogpt", "fast"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    config = tiny(write_text(tmp_path), recipe=request.param, compile=False, n_embd=32)
    training = start(config, tmp_path / "out")[0]
    vocabulary = len(training.dataset.vocabulary)
    tokens = training.batches.tokens("train")
    order = order_for(config, vocabulary, tokens, training.hardware, training.ranks)
    return Case(order, Sources.of(order))


def test_the_same_is_the_same(case: Case) -> None:
    case.verify()
    case.verify()


@pytest.mark.parametrize("lost", ["wte.weight", "h.1.attn.c_attn.weight", "h.0.mlp.c_proj.weight"])
@pytest.mark.parametrize("how", [0.0, 0.5, float("nan")])
def test_a_gradient_that_is_lost_is_named(case: Case, lost: str, how: float) -> None:
    def gradient(*arguments: Any) -> None:
        case.sources.gradient(*arguments)
        case.sources.layout.views(case.sources.row)[lost].mul_(how)

    with pytest.raises(
        LibraryError, match=rf"gradient is another than the model's for {lost}, by a fault of"
    ):
        case.verify(gradient)


def test_gradients_that_are_not_written_are_counted(case: Case) -> None:
    case.verify()  # what it leaves must not pass for theirs
    with pytest.raises(LibraryError, match=r"for the loss, .*\.weight, .*\.weight and \d+ more, by a fault"):
        case.verify(lambda *arguments: None)


def test_a_norm_that_is_never_trained(tmp_path: Path) -> None:
    """As one compiler did it."""
    config = tiny(write_text(tmp_path), compile=False, n_embd=32)
    training = start(config, tmp_path / "out")[0]
    tokens = training.batches.tokens("train")
    order = order_for(config, 28, tokens, training.hardware, training.ranks)
    it = Case(order, Sources.of(order))

    def gradient(*arguments: Any) -> None:
        it.sources.gradient(*arguments)
        for name, part in it.sources.layout.views(it.sources.row).items():
            part.mul_(0.0 if "ln_" in name else 1.0)

    with pytest.raises(LibraryError, match=r"for h\.0\.ln_1\.weight, .* and 2 more"):
        it.verify(gradient)


@pytest.mark.parametrize("changed", [0, 2, 3])
def test_an_update_that_is_another_is_named(case: Case, changed: int) -> None:
    """Of weights, first or second moments."""

    def update(*arguments: Any) -> None:
        before = arguments[changed].clone()
        case.sources.update(*arguments)
        arguments[changed].lerp_(before, 0.5)

    kind = {0: "", 2: "first moment of ", 3: "second moment of "}[changed]
    with pytest.raises(LibraryError, match=f"the compiled update is another than the model's for {kind}"):
        case.verify(update=update)


def test_a_part_of_a_batch_is_added_to_those_before_it(case: Case) -> None:
    """Where there is a first one it replaces what was there."""
    part = replace(case.order.part, units=2, adds=True)
    sources = Sources.of(case.order.model_copy(update={"part": part}))
    keep, row = sources.gradient_arguments[4], sources.layout.views(sources.row)
    sums = []
    with torch.no_grad():
        fill(case.order, sources)
        for kept in (0.0, 1.0):
            sources.row.fill_(0.5)
            keep.fill_(kept)
            sources.gradient(*sources.gradient_arguments)
            sums.append({name: view.clone() for name, view in row.items()})
    alone, added = sums
    for name in alone:
        assert torch.allclose(alone[name] + 0.5, added[name], atol=1e-6), name


def test_muons_steps_are_in_bf16_on_a_gpu(case: Case) -> None:
    on_gpu = case.order.model_copy(update={"device": "cuda"})
    fast = on_gpu.settings["recipe"] == "fast"
    assert coarsest(on_gpu, "update") == ("bfloat16" if fast else "float32")
    assert coarsest(on_gpu, "gradient") == coarsest(case.order, "update") == "float32"


def test_without_memory_for_both_it_is_called_only(case: Case) -> None:
    called: list[str] = []

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("no")

    sources = Sources(**{**vars(case.sources), "gradient": full, "update": full})
    programs = Programs(lambda *_: called.append("gradient"), lambda *_: called.append("update"))
    verify(case.order, sources, programs)
    assert called == ["gradient", "update"]


def test_what_is_wrong_is_not_kept(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiling process, whose compiler does not write gradients."""
    wrong = Programs(lambda *_: None, case.sources.update)
    monkeypatch.setenv("ORCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_into_libraries", lambda order, folder: wrong)
    monkeypatch.setattr(compiling, "_end_with_parent", lambda: None)
    monkeypatch.setattr("os.nice", lambda more: None)
    order = case.order.model_dump_json().encode() + b"\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(order)))
    with pytest.raises(LibraryError, match="the compiled gradient is another"):
        compiling.main()
    assert compiling.load(case.order, 1) is None
