"""A checkpoint for nanoGPT has its names, shapes and arguments, and gives the same logits there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from orchestrator.contract import EXIT_USER_ERROR
from tests.unit.trainer.support import start, tiny, write_text
from trainer.export import main
from trainer.sample import load_model

NAMES = {
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "transformer.ln_f.weight",
    "lm_head.weight",
    *(
        f"transformer.h.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    ),
}


def logits_as_nanogpt(content: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
    """GPT-2's forward pass (Radford et al., 2019) of nanoGPT's weights by their names: (T,) to (T, V)."""
    w = {name.removeprefix("transformer."): tensor for name, tensor in content["model"].items()}
    args = content["model_args"]
    C, H = args["n_embd"], args["n_head"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (C,), w[f"{name}.weight"])

    x = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]
    for layer in range(args["n_layer"]):
        h = f"h.{layer}."
        heads = norm(x, h + "ln_1") @ w[h + "attn.c_attn.weight"].T
        q, k, v = (part.view(-1, H, C // H).transpose(0, 1) for part in heads.split(C, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(-1, C)
        x = x + y @ w[h + "attn.c_proj.weight"].T
        hidden = F.gelu(norm(x, h + "ln_2") @ w[h + "mlp.c_fc.weight"].T)
        x = x + hidden @ w[h + "mlp.c_proj.weight"].T
    return norm(x, "ln_f") @ w["lm_head.weight"].T


def test_nanogpt_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training, _ = start(tiny(write_text(tmp_path), n_layer=2, max_steps=6), tmp_path / "out")
    training.run()
    capsys.readouterr()
    directory, file = tmp_path / "out/step-00000006", tmp_path / "ckpt.pt"
    assert main([str(directory), str(file)]) == 0
    assert capsys.readouterr().out.split() == [str(file), str(tmp_path / "meta.pkl")]
    content = torch.load(file, weights_only=True)  # plain data, although nanoGPT would take more
    assert set(content["model"]) == NAMES
    assert content["iter_num"] == 6
    model, state = load_model(directory)
    assert content["best_val_loss"] == (state.best.val if state.best else None)
    tokens = torch.arange(model.block_size) % content["model_args"]["vocab_size"]
    with torch.no_grad():
        expected = model(tokens[None])[0][0, -1]
        found = logits_as_nanogpt(content, tokens)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
    assert "".join(meta["itos"][i] for i in range(meta["vocab_size"])) == state.vocabulary
    assert meta["stoi"][state.vocabulary[3]] == 3


def test_it_has_no_other_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training, _ = start(tiny(write_text(tmp_path), recipe="fast", max_steps=2), tmp_path / "out")
    training.run()
    code = main([str(tmp_path / "out/step-00000002"), str(tmp_path / "ckpt.pt")])
    assert code == EXIT_USER_ERROR
    assert "nanoGPT has no model like this one (recipe: fast)" in capsys.readouterr().err
    assert not (tmp_path / "ckpt.pt").exists()
