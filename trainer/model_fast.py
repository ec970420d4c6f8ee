"""The model of ``recipe: fast``: GPT-2's decoder, changed so that it learns in fewer steps.

Shapes as in :mod:`trainer.model`: B sequences, T tokens, C channels, V tokens that the model knows.
Parameters that GPT-2 has too carry its names. What each ingredient gives is measured in ``docs/recipes.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import ops
from trainer.config import TrainerConfig
from trainer.model import GPT, Embedding, LayerNorm, Linear

_INIT_STD = 0.02
_ROTARY_BASE = 10000.0
_NGRAM_ROWS = 16381
"""Rows of a table of n-grams that may be more than that, so that some share a row. A prime spreads them."""
_HASH_FACTOR = 40503  # 2^16 over the golden ratio (Knuth, volume 3, 6.4)
_HASH_PRIME = 2**31 - 1


@dataclass(frozen=True)
class Ingredients:
    """What the model has that GPT-2 has not. The recipe has all of it; ablations leave some out."""

    rotary: bool = True
    """Positions by rotating queries and keys (Su et al., 2021), not by trained embeddings."""
    rms_norm: bool = True
    """Root mean square norms without weights, not layer norms."""
    qk_norm: bool = True
    """Queries and keys are normalised in each head (Henry et al., 2020)."""
    relu2: bool = True
    """Squared ReLU (So et al., 2021), not GELU."""
    zero_init: bool = True
    """Matrices that add to the residual stream begin at zero."""
    untied: bool = True
    """The output matrix is not the token embedding."""
    ngrams: int = 4
    """A token's embedding has a trained row added for the last two tokens together, one for the last three,
    and so on to this many (hash embeddings: Svenstrup et al., 2017); 1 adds none."""
    softcap: float = 15.0
    """Logits are bent to stay below this (Gemma 2); 0 leaves them."""


FULL = Ingredients()
NONE = Ingredients(*(False,) * 6, ngrams=1, softcap=0.0)
"""GPT-2's model."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, (T, C / head / 2) each."""


class RMSNorm(nn.Module):
    """Root mean square normalisation over C, without weights."""

    def forward(self, x: Tensor, z: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
        """x + dropout(z), and that normalised."""
        return ops.add_norm(x, z, None, None, dropout, centred=False)


class Attention(nn.Module):
    """Causal self-attention with dropout on the attention weights."""

    def __init__(self, config: TrainerConfig, ingredients: Ingredients) -> None:
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qk_norm = ingredients.qk_norm
        self.c_attn = Linear(C, 3 * C, config.bias)
        self.c_proj = Linear(C, C, config.bias)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = heads.unbind(2)  # each (B, T, head, C / head)
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if rotation is not None:
            q, k = _rotate(q, rotation), _rotate(k, rotation)
        heads = torch.stack((q.to(v.dtype), k.to(v.dtype), v), 2)
        y: Tensor = self.c_proj(ops.self_attention(heads, self.dropout if self.training else 0.0))
        return y


class MLP(nn.Module):
    """Two matrices, four times as wide between them."""

    def __init__(self, config: TrainerConfig, ingredients: Ingredients) -> None:
        super().__init__()
        self.relu2 = ingredients.relu2
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.c_fc.bias is None:
            return ops.mlp(x, self.c_fc.weight, self.c_proj.weight, squared=self.relu2)
        x = self.c_fc(x)
        y: Tensor = self.c_proj(F.relu(x).square() if self.relu2 else ops.gelu(x))
        return y


class Block(nn.Module):
    """One transformer block; like :class:`trainer.model.Block`, it leaves an addition to the next norm."""

    def __init__(self, config: TrainerConfig, ingredients: Ingredients) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.ln_1 = _norm(config, ingredients)
        self.attn = Attention(config, ingredients)
        self.ln_2 = _norm(config, ingredients)
        self.mlp = MLP(config, ingredients)

    def forward(self, x: Tensor, z: Tensor | None, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        p = self.dropout if self.training else 0.0
        x, a = self.ln_1(x, z, p)
        x, a = self.ln_2(x, self.attn(a, rotation), p)
        return x, self.mlp(a)


class FastGPT(nn.Module):
    """The language model, with the interface of :class:`trainer.model.GPT`.

    ``seed`` decides the initial weights, drawn on the CPU so that every device starts from the same ones.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        config: TrainerConfig,
        vocab_size: int,
        seed: int = 0,
        ingredients: Ingredients | None = None,
    ) -> None:
        """By default with all ingredients, and n-grams as configured."""
        super().__init__()
        ingredients = ingredients or replace(FULL, ngrams=config.ngrams)
        C = config.n_embd
        self.block_size = config.block_size
        self.dropout = config.dropout
        self.n_layer = config.n_layer
        self.ingredients = ingredients
        self.vocab_size = vocab_size
        self.wte = Embedding(vocab_size, C)
        orders = range(2, ingredients.ngrams + 1)
        self.ngrams = nn.ModuleDict({str(n): Embedding(_rows(n, vocab_size), C) for n in orders})
        self.wpe = None if ingredients.rotary else Embedding(config.block_size, C)
        self.h = nn.ModuleList(Block(config, ingredients) for _ in range(config.n_layer))
        self.ln_f = _norm(config, ingredients)
        self.lm_head = Linear(C, vocab_size, bias=False) if ingredients.untied else None
        if ingredients.rotary:
            cos, sin = _rotation(config.block_size, C // config.n_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """GPT-2's, but n-grams begin at zero, and so may the matrices that add to the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            residual = name.endswith("c_proj.weight")
            if name.startswith("ngrams") or (residual and self.ingredients.zero_init):
                parameter.zero_()
                continue
            std = _INIT_STD / math.sqrt(2 * self.n_layer) if residual else _INIT_STD
            parameter.normal_(0.0, std, generator=generator)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits and, given targets (B, T), the mean cross-entropy in nats.

        Tokens are (B, T) with T <= block_size. Logits are (B, T, V) with targets; without them only the last
        position's, (B, 1, V), which is what sampling needs.
        """
        T = tokens.shape[1]
        x = ops.dropout(self._embed(tokens), self.dropout, self.training)  # (B, T, C)
        rotation = (self.cos[:T], self.sin[:T]) if self.ingredients.rotary else None
        z = None
        for block in self.h:
            x, z = block(x, z, rotation)
        x = self.ln_f(x, z, self.dropout if self.training else 0.0)[1]
        if targets is None:
            return self._logits(x[:, -1:]), None
        logits = self._logits(x)
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def parameter_count(self, positions: bool = True) -> int:
        """Number of parameters. `positions` false leaves out those that are looked up only, in no product."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if positions:
            return total
        looked_up = [*self.ngrams.parameters(), *(() if self.wpe is None else self.wpe.parameters())]
        if self.lm_head is not None:
            looked_up.append(self.wte.weight)
        return total - sum(map(Tensor.numel, looked_up))

    def _embed(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.wte(tokens)
        for table, rows in zip(self.ngrams.values(), self._ngrams(tokens), strict=True):
            x = x + table(rows)
        if self.wpe is not None:
            x = x + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        return x

    def _ngrams(self, tokens: Tensor) -> list[Tensor]:
        """Rows (B, T) in the tables, for the 2, 3, ... tokens that end with each one of (B, T).

        A token of its own kind stands for all that is before a sequence.
        """
        V, T = self.vocab_size, tokens.shape[1]
        found, number = [], tokens
        for n in range(2, len(self.ngrams) + 2):
            earlier = F.pad(tokens, (n - 1, 0), value=V)[:, :T]
            number = earlier * V + tokens if n == 2 else (number * _HASH_FACTOR + earlier) % _HASH_PRIME
            found.append(number % _rows(n, V))
        return found

    def _logits(self, x: Tensor) -> Tensor:
        logits = ops.logits(x, self.wte.weight if self.lm_head is None else self.lm_head.weight)
        cap = self.ingredients.softcap
        return cap * torch.tanh(logits.float() / cap) if cap else logits


LanguageModel = GPT | FastGPT


def build_model(config: TrainerConfig, vocab_size: int, seed: int = 0) -> LanguageModel:
    """The model that the configuration's recipe trains."""
    return (FastGPT if config.recipe == "fast" else GPT)(config, vocab_size, seed)


def _rows(n: int, vocab_size: int) -> int:
    """Rows of the table of n-grams: for pairs one each, if that makes no larger table."""
    return min((vocab_size + 1) * vocab_size, _NGRAM_ROWS) if n == 2 else _NGRAM_ROWS


def _norm(config: TrainerConfig, ingredients: Ingredients) -> nn.Module:
    return RMSNorm() if ingredients.rms_norm else LayerNorm(config.n_embd, config.bias)


def _rotation(positions: int, width: int) -> Rotation:
    frequencies = _ROTARY_BASE ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * frequencies
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the i-th channel of the first half and of the second, a pair, by position times frequency i.

    x is (B, T, head, C / head).
    """
    cos, sin = (part[:, None] for part in rotation)
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)
