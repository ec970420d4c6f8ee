"""GPT-2's decoder as nanoGPT trains it. Shapes: B sequences, T tokens, C channels, V characters.

Parameters carry GPT-2's published names (``h.0.attn.c_attn.weight``); matrices are stored (out, in). Layers
are not `torch.nn`'s, whose constructors draw weights that would be thrown away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import ops
from trainer.config import TrainerConfig

_INIT_STD = 0.02


class Linear(nn.Module):
    """A matrix (out, in) and, where wanted, a bias of zeros. The model fills the matrix."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """One row of C numbers for each token or position. The model fills them."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, rows: Tensor) -> Tensor:
        return ops.embedding(rows, self.weight)


class LayerNorm(nn.Module):
    """Layer normalisation over C whose bias can be left out, of what is added up first; epsilon 1e-5."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor, z: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
        """x + dropout(z), and that normalised."""
        return ops.add_norm(x, z, self.weight, self.bias, dropout)


class Attention(nn.Module):
    """Causal self-attention with dropout on the attention weights."""

    def __init__(self, config: TrainerConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(C, 3 * C, config.bias)
        self.c_proj = Linear(C, C, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        y: Tensor = self.c_proj(ops.self_attention(heads, self.dropout if self.training else 0.0))
        return y


class MLP(nn.Module):
    """Two matrices, four times as wide between them, with an exact GELU."""

    def __init__(self, config: TrainerConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.c_fc.bias is None:
            return ops.mlp(x, self.c_fc.weight, self.c_proj.weight, squared=False)
        y: Tensor = self.c_proj(ops.gelu(self.c_fc(x)))
        return y


class Block(nn.Module):
    """One transformer block, normalised before each part.

    What its last part adds to the residual stream x is left to the next norm: (x, z) is x + dropout(z).
    """

    def __init__(self, config: TrainerConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        p = self.dropout if self.training else 0.0
        x, a = self.ln_1(x, z, p)
        x, a = self.ln_2(x, self.attn(a), p)
        return x, self.mlp(a)


class GPT(nn.Module):
    """The language model. The token embedding is also the output matrix.

    ``seed`` decides the initial weights, drawn on the CPU so that every device starts from the same ones.
    """

    def __init__(self, config: TrainerConfig, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        self.block_size = config.block_size
        self.dropout = config.dropout
        self.n_layer = config.n_layer
        self.wte = Embedding(vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.bias)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """N(0, 0.02) for every matrix; 0.02 / sqrt(2 n_layer) for those that add to the residual stream.

        From the GPT-2 paper ("Language Models are Unsupervised Multitask Learners"), section 2.3.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            residual = name.endswith("c_proj.weight")
            std = _INIT_STD / math.sqrt(2 * self.n_layer) if residual else _INIT_STD
            parameter.normal_(0.0, std, generator=generator)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits and, given targets (B, T), the mean cross-entropy in nats.

        Tokens are (B, T) with T <= block_size. Logits are (B, T, V) with targets; without them only the last
        position's, (B, 1, V), which is what sampling needs.
        """
        T = tokens.shape[1]
        positions = torch.arange(T, device=tokens.device)
        x = ops.dropout(self.wte(tokens) + self.wpe(positions), self.dropout, self.training)  # (B, T, C)
        z = None
        for block in self.h:
            x, z = block(x, z)
        x = self.ln_f(x, z, self.dropout if self.training else 0.0)[1]
        if targets is None:
            return ops.logits(x[:, -1:], self.wte.weight), None
        logits = ops.logits(x, self.wte.weight)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return logits, loss

    def parameter_count(self, positions: bool = True) -> int:
        """Number of parameters. nanoGPT leaves the position embeddings out: `positions` false."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return total if positions else total - self.wpe.weight.numel()
