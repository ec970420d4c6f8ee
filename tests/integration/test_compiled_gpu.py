"""What is compiled for a GPU computes what the program says, each tensor of it. Skipped without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.in_process import in_process
from trainer.orders import Order, Sources, machine, settings_of, versions
from trainer.programs import Part
from trainer.verify import Tolerance, apart, coarsest, fill, gradient, update

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),  # of PyTorch's compiler about PyTorch
]

VOCABULARY = 65
STRICT = {"float32": Tolerance(1e-3, 1e-5), "bfloat16": Tolerance(0.05, 1e-3)}
LARGE: dict[str, Any] = {"n_embd": 384, "n_head": 6, "block_size": 256, "batch_size": 64}
SMALL: dict[str, Any] = {"n_embd": 128, "n_head": 4, "block_size": 64, "batch_size": 12}


def order_of(config: TrainerConfig, dtype: str, kernels: bool, units: int = 1) -> Order:
    device = torch.device("cuda")
    return Order(
        settings=settings_of(config),
        vocab_size=VOCABULARY,
        tokens="uint8",
        length=5000,
        device="cuda",
        dtype=dtype,
        part=Part(config.batch_size // units, units, adds=units > 1),
        rows=1,
        kernels=kernels,
        threads=1,
        machine=machine(device, torch.cuda.get_device_name()),
        versions=versions(),
    )


@pytest.mark.parametrize("recipe", ["nanogpt", "fast"])
@pytest.mark.parametrize("shape", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize(
    ("dtype", "kernels"),
    [("float32", False), ("bfloat16", False), ("bfloat16", True)],
    ids=["fp32", "bf16", "kernels"],
)
def test_each_tensor(tmp_path: Path, recipe: str, shape: dict[str, Any], dtype: str, kernels: bool) -> None:
    config = TrainerConfig.model_validate({**shape, "recipe": recipe, "n_layer": 2, "dropout": 0.2})
    order = order_of(config, dtype, kernels)
    sources = Sources.of(order)
    compiled = in_process(order, tmp_path)
    with torch.no_grad():
        fill(order, sources)
        gradients = zip(
            gradient(sources, sources.gradient), gradient(sources, compiled.gradient), strict=True
        )
        updates = zip(update(sources, sources.update), update(sources, compiled.update), strict=True)
        wrong = [n for pair in gradients for n in apart(*pair, STRICT[coarsest(order, "gradient")])]
        wrong += [n for pair in updates for n in apart(*pair, STRICT[coarsest(order, "update")])]
    assert wrong == []


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_parts_of_a_batch_add_up(tmp_path: Path, keep: float) -> None:
    """With `keep` at 1 a part's gradient is added to what is there, at 0 it takes its place."""
    config = TrainerConfig.model_validate({**SMALL, "n_layer": 2, "dropout": 0.2})
    order = order_of(config, "float32", False, units=4)
    sources = Sources.of(order)
    compiled = in_process(order, tmp_path)
    rows = []
    with torch.no_grad():
        fill(order, sources)
        sources.gradient_arguments[4].fill_(keep)
        for program in (sources.gradient, compiled.gradient):
            sources.row.fill_(0.5)
            torch.manual_seed(1)
            program(*sources.gradient_arguments)
            views = sources.layout.views(sources.row)
            rows.append({name: view.clone() for name, view in views.items()})
    plain, made = rows
    assert apart(plain, made, STRICT["float32"]) == []
    assert all((view.mean() > 0.25) == bool(keep) for view in plain.values())
