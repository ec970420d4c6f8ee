"""What is compiled for a GPU computes what the program says, each tensor of it. Skipped without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.in_process import in_process
from trainer.orders import Order, Sources, machine, settings_of, versions
from trainer.programs import TAIL, Part

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),  # of PyTorch's compiler about PyTorch
]

VOCABULARY = 65
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
    ("dtype", "kernels", "tolerance"),
    [("float32", False, 1e-3), ("bfloat16", False, 0.05), ("bfloat16", True, 0.05)],
    ids=["fp32", "bf16", "kernels"],
)
def test_each_tensor_of_the_gradient(
    tmp_path: Path, recipe: str, shape: dict[str, Any], dtype: str, kernels: bool, tolerance: float
) -> None:
    config = TrainerConfig.model_validate({**shape, "recipe": recipe, "n_layer": 2, "dropout": 0.2})
    order = order_of(config, dtype, kernels)
    sources = Sources.of(order)
    compiled = in_process(order, tmp_path).gradient
    weights, tokens, starts, noise, keep, row = sources.gradient_arguments
    generator = torch.Generator("cuda").manual_seed(3)
    weights.add_(torch.randn(weights.shape, generator=generator, device="cuda"), alpha=0.02)
    tokens.random_(0, VOCABULARY, generator=generator)
    starts.random_(0, len(tokens) - config.block_size - 1, generator=generator)
    noise.copy_(torch.tensor([11, 0, 1]))
    found = []
    for program in (sources.gradient, compiled):
        row.fill_(torch.nan)  # what is not written shows
        torch.cuda.manual_seed(5)
        with torch.no_grad():
            program(weights, tokens, starts, noise, keep, row)
        found.append(row.clone())
    expected, got = found
    layout = sources.layout
    assert got[layout.size :].tolist() == pytest.approx(expected[layout.size :].tolist(), rel=tolerance)
    assert len(got) == layout.size + TAIL
    both = zip(layout.views(expected).items(), layout.views(got).values(), strict=True)
    apart = {name: float((mine - theirs).norm() / theirs.norm()) for (name, theirs), mine in both}
    assert not {name: difference for name, difference in apart.items() if not difference < tolerance}
