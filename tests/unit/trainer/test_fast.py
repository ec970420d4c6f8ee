"""The fast recipe: its model, Muon, its schedule, and its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from orchestrator.spec.models import RunSpec
from tests.unit.trainer.support import assert_same_bits, start, tiny, weights, write_text
from trainer import checkpoint
from trainer.config import RECIPE_DEFAULTS, TrainerConfig
from trainer.errors import UserError
from trainer.model import GPT
from trainer.model_fast import NONE, FastGPT, _rotate, build_model
from trainer.muon import (
    COEFFICIENTS,
    MuonAdamW,
    Plan,
    _gram_newton_schulz,
    _newton_schulz,
    muon_update,
    orthogonalise,
    rates,
)
from trainer.optimizer import learning_rate

V = 20


def fast(text: Path = Path("unused"), **settings: Any) -> TrainerConfig:
    return tiny(text, recipe="fast", **settings)


def tokens(length: int = 8, batch: int = 3) -> torch.Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(1))


def trained(config: TrainerConfig) -> FastGPT:
    """A model whose matrices are none of them zero, so that every part shows in the logits."""
    model = FastGPT(config, V)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model.eval()


# Defaults


def test_settings_that_are_left_out_are_the_recipes() -> None:
    config = TrainerConfig(recipe="fast")
    for key, value in RECIPE_DEFAULTS["fast"].items():
        assert getattr(config, key) == value
        assert getattr(TrainerConfig(), key) == TrainerConfig.model_fields[key].default != value


def test_given_settings_win_even_with_the_other_recipes_value() -> None:
    default = TrainerConfig()
    given = {key: getattr(default, key) for key in RECIPE_DEFAULTS["fast"]}
    assert TrainerConfig(recipe="fast", **given).model_dump() == {**default.model_dump(), "recipe": "fast"}


def test_a_dumped_configuration_reads_back_as_it_was() -> None:
    config = TrainerConfig(recipe="fast", min_lr=1e-4)
    assert config.model_dump(exclude_unset=True) == {"recipe": "fast", "min_lr": 1e-4}
    assert TrainerConfig.model_validate(config.model_dump()) == config
    assert TrainerConfig.model_validate(config.model_dump(exclude_unset=True)) == config
    assert TrainerConfig.model_validate_json(config.model_dump_json()) == config


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="'nanogpt' or 'fast'"):
        TrainerConfig.model_validate({"recipe": "slow"})


def test_a_recipe_cannot_begin_with_the_placement() -> None:
    """A variant gets what the spec's own recipe resolved to, so its rates would be another recipe's."""
    spec = {"name": "x", "trainer": {}, "placement": [{"pool": "a", "trainer": {"recipe": "fast"}}]}
    with pytest.raises(ValueError, match="recipe must be the same"):
        RunSpec.model_validate(spec)
    spec["trainer"] = {"recipe": "fast"}
    RunSpec.model_validate(spec)


# Schedule


def test_learning_rates_fall_on_a_line_and_momentum_grows() -> None:
    config = TrainerConfig(
        recipe="fast", max_steps=400, learning_rate=0.1, muon_lr=0.02, muon_momentum=0.95, warmup_steps=0
    )
    assert rates(config, 0) == pytest.approx((0.1, 0.02, 0.85))
    assert rates(config, 50) == pytest.approx((0.0875, 0.0175, 0.9))
    assert rates(config, 200) == pytest.approx((0.05, 0.01, 0.95))
    assert rates(config, 400)[:2] == (0.0, 0.0)
    assert rates(config, 300).adamw == learning_rate(config, 300)


# Model


def test_without_ingredients_it_is_gpt2s_model() -> None:
    config = tiny(Path("unused"), bias=True, dropout=0.0)
    plain, bare = GPT(config, V, seed=3), FastGPT(config, V, seed=3, ingredients=NONE)
    assert_same_bits(plain.state_dict(), bare.state_dict())
    x = tokens()
    torch.testing.assert_close(plain(x, x)[0], bare(x, x)[0], rtol=0, atol=0)
    assert plain.parameter_count(positions=False) == bare.parameter_count(positions=False)


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model = trained(fast())
    x = tokens()
    changed = x.clone()
    changed[:, 5] = (changed[:, 5] + 1) % V
    before, after = model(x, x)[0], model(changed, x)[0]
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_sampling_sees_the_logits_of_the_last_position() -> None:
    model = trained(fast())
    x = tokens(length=6)
    logits, loss = model(x)
    assert loss is None
    torch.testing.assert_close(logits, model(x, x)[0][:, -1:])


def test_blocks_and_ngrams_begin_with_adding_nothing() -> None:
    x = tokens()
    model = FastGPT(fast(), V).eval()
    assert model.lm_head is not None
    logits = F.linear(F.rms_norm(model.wte(x), (16,), eps=1e-5), model.lm_head.weight)
    torch.testing.assert_close(model(x, x)[0], 15.0 * torch.tanh(logits / 15.0))
    assert logits.abs().max() > 0.01


def test_every_parameter_is_trained() -> None:
    model = trained(fast(bias=True))
    model(tokens(), tokens())[1].backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_rotated_products_depend_on_the_distance_only() -> None:
    model = FastGPT(fast(), V)
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(4))

    def product(i: int, j: int) -> float:
        left = _rotate(q, (model.cos[i], model.sin[i]))
        return float((left * _rotate(k, (model.cos[j], model.sin[j]))).sum())

    assert product(5, 2) == pytest.approx(product(3, 0), rel=1e-4)
    assert product(5, 2) != pytest.approx(product(5, 3), rel=1e-2)


@pytest.mark.parametrize("vocabulary", [V, 50304])
def test_ngrams_are_spread_over_their_tables(vocabulary: int) -> None:
    """Different ones have different rows, apart from collisions such as chance would have."""
    model = FastGPT(fast(n_embd=2, n_head=1), vocabulary)
    drawn = torch.randint(vocabulary, (200, 8), generator=torch.Generator().manual_seed(1))
    tables = list(model.ngrams.children())
    assert len(tables) == 3
    for n, (table, rows) in enumerate(zip(tables, model._ngrams(drawn), strict=True), start=2):
        size = len(table.weight)  # type: ignore[arg-type]
        padded = F.pad(drawn, (n - 1, 0), value=vocabulary)
        different = len(padded.unfold(1, n, 1).flatten(0, 1).unique(dim=0))
        by_chance = different if (n, vocabulary) == (2, V) else size * (1 - (1 - 1 / size) ** different)
        assert len(rows.unique()) == pytest.approx(by_chance, rel=0.02)
        assert 0 <= int(rows.min()) <= int(rows.max()) < size


def test_an_ngram_is_the_tokens_that_it_ends() -> None:
    """Equal last four tokens, equal rows, wherever they stand; another one of the four, another row."""
    model = FastGPT(fast(), V)
    rows = torch.stack(model._ngrams(torch.tensor([[1, 2, 3, 4, 9, 1, 2, 3, 4, 7, 2, 3, 4]])))[:, 0]
    assert torch.equal(rows[:, 3], rows[:, 8])
    assert torch.equal(rows[:2, 3], rows[:2, 12])
    assert rows[2, 3] != rows[2, 12]


def test_the_recipe_decides_the_model() -> None:
    assert type(build_model(fast(), V)) is FastGPT
    assert type(build_model(tiny(Path("unused")), V)) is GPT


# Muon


@pytest.mark.parametrize("shape", [(3, 12, 12), (2, 12, 48)])
def test_orthogonal_steps_have_singular_values_around_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * 1e-3
    singular = torch.linalg.svdvals(orthogonalise(matrices))
    assert singular.max() < 1.9
    assert 0.8 < singular.median() < 1.2
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    nearest = left @ right
    cosine = F.cosine_similarity(orthogonalise(matrices).flatten(1), nearest.flatten(1))
    assert cosine.min() > 0.8


def test_iterating_on_the_gram_matrix_is_the_same() -> None:
    matrices = torch.randn((2, 12, 48), generator=torch.Generator().manual_seed(5))
    matrices /= matrices.norm(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(_gram_newton_schulz(matrices), _newton_schulz(matrices), rtol=1e-4, atol=1e-5)


def test_muon_follows_its_definition() -> None:
    """Each matrix by itself, tall ones too, and c_attn as three."""
    generator = torch.Generator().manual_seed(6)
    shapes, parts = [(8, 8), (24, 8), (32, 8), (8, 32)], [1, 3, 1, 1]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = [weight.clone() for weight in weights]
    momenta = [torch.zeros(shape) for shape in shapes]
    means = [torch.zeros(shape) for shape in shapes]
    for _ in range(3):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        muon_update(
            weights, grads, momenta, parts=parts, lr=torch.tensor(0.1), momentum=0.9, weight_decay=0.5
        )
        for i, count in enumerate(parts):
            means[i] = 0.9 * means[i] + 0.1 * grads[i]
            ahead = 0.9 * means[i] + 0.1 * grads[i]
            expected[i] *= 1 - 0.1 * 0.5
            for place, part in zip(expected[i].chunk(count), ahead.chunk(count), strict=True):
                scale = max(1.0, part.shape[0] / part.shape[1]) ** 0.5
                place -= 0.1 * scale * _newton_schulz_by_svd(part)
    for weight, right in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, right, rtol=1e-3, atol=1e-3)
    for momentum, right in zip(momenta, means, strict=True):
        torch.testing.assert_close(momentum, right)


def _newton_schulz_by_svd(matrix: torch.Tensor) -> torch.Tensor:
    """The polynomial applied to the singular values, in double precision."""
    left, singular, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    singular = singular / (singular.norm() * 1.01)
    for a, b, c in COEFFICIENTS:
        singular = a * singular + b * singular**3 + c * singular**5
    return (left @ singular.diag() @ right).float()


def test_muon_trains_the_blocks_matrices_and_adamw_the_rest() -> None:
    model = FastGPT(fast(bias=True), V)
    plan = Plan.of({name: p.shape for name, p in model.named_parameters()})
    assert {name.split(".", 2)[2] for name in plan.muon} == {
        "attn.c_attn.weight",
        "attn.c_proj.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
    }
    assert {name for name in plan.adamw if "bias" not in name} == {
        "wte.weight",
        "ngrams.2.weight",
        "ngrams.3.weight",
        "ngrams.4.weight",
        "lm_head.weight",
    }
    assert sorted(plan.muon + plan.adamw) == sorted(dict(model.named_parameters()))
    assert {plan.parts[name] for name in plan.muon if "c_attn" in name} == {3}


# Training


def test_it_learns_and_an_interruption_changes_no_bit(tmp_path: Path) -> None:
    config = fast(write_text(tmp_path), max_steps=40)
    whole, context = start(config, tmp_path / "whole")
    assert whole.run() == 0
    assert isinstance(whole.optimizer, MuonAdamW)
    assert context.points["val/loss", 40] < context.points["val/loss", 0] - 0.4
    first, steered = start(config, tmp_path / "parts")
    steered.stop = lambda: first.step >= 17
    first.run()
    second, again = start(config, tmp_path / "parts", restore=checkpoint.find(tmp_path / "parts"))
    assert second.step == 17
    assert second.run() == 0
    assert_same_bits(weights(whole), weights(second))
    assert again.points["val/loss", 40] == context.points["val/loss", 40]


def test_a_checkpoint_of_the_other_recipe_is_refused(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    training, _ = start(tiny(text, max_steps=2), tmp_path)
    training.run()
    with pytest.raises(UserError, match="recipe nanogpt, the configuration fast"):
        start(fast(text), tmp_path, restore=checkpoint.find(tmp_path))
