"""The trainer's configuration. Imports no torch, so that a spec can be checked on any machine.

Names and defaults follow nanoGPT (github.com/karpathy/nanoGPT), so that its configurations can be copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


RECIPE_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "nanogpt": {},
    "fast": {
        "learning_rate": 1e-2,
        "min_lr": 0.0,
        "warmup_steps": 0,
        "lr_schedule": "linear",
        "weight_decay": 0.0,
        "grad_clip": 0.0,
    },
}
"""Where a recipe's default differs from the one written at the field."""


class StopWhen(BaseModel):
    """When a run ends before `max_steps`, as finished."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    patience: PositiveInt | None = None
    """After this many evaluations in a row without a new lowest val loss."""
    val_loss: Annotated[float, Field(gt=0)] | None = None
    """As soon as an evaluation's val loss is this low."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.patience is None and self.val_loss is None:
            raise ValueError("stop_when needs patience or val_loss")
        return self


class TrainerConfig(BaseModel):
    """A character-level GPT and how to train it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    # Data
    dataset: str = "tiny-shakespeare"
    """`tiny-shakespeare`, `shakespeare-plays`, the path or http(s) URL of a UTF-8 text file, or the path of a
    folder with train.bin and val.bin: uint16 tokens as nanoGPT prepares them."""
    vocab_size: PositiveInt | None = None
    """Tokens that the model knows, for such a folder; what its files hold when unset (50304 for GPT-2's)."""

    # Model
    n_layer: PositiveInt = 4
    """Transformer blocks."""
    n_head: PositiveInt = 4
    """Attention heads per block; must divide n_embd."""
    n_embd: PositiveInt = 128
    """Width of the residual stream."""
    block_size: PositiveInt = 64
    """Context length in tokens."""
    dropout: Fraction = 0.0
    """Probability of dropping an activation in training."""
    bias: bool = False
    """Biases in linear layers and layer norms."""

    # Optimization
    recipe: Literal["nanogpt", "fast"] = "nanogpt"
    """`nanogpt` trains nanoGPT's model as nanoGPT does; `fast` needs fewer steps for the same loss: another
    model of the same shape, and the Muon optimizer. It has defaults of its own: see docs/recipes.md."""
    ngrams: Annotated[int, Field(ge=1, le=8)] = 4
    """Under `fast`, a token's embedding depends on this many tokens; 1: on itself only. With more it learns
    sooner, and overfits sooner where a text is passed over several times."""
    batch_size: PositiveInt = 12
    """Sequences per step."""
    micro_batches: PositiveInt = 1
    """Parts that a batch is computed in, one after the other, to need less memory; must divide batch_size."""
    max_steps: PositiveInt = 2000
    """Stop after this many optimizer steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of AdamW. `fast`: 0.01."""
    muon_lr: Annotated[float, Field(gt=0)] = 0.02
    """Peak learning rate of Muon, which trains the blocks' matrices under `fast`."""
    muon_momentum: Fraction = 0.95
    """Momentum of Muon; it starts at 0.85 and gets there in 100 steps."""
    lr_schedule: Literal["cosine", "linear"] = "cosine"
    """How learning rates go from their peak to min_lr. `fast`: linear."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-4
    """Learning rate at the end of the decay; Muon's goes down in proportion. `fast`: 0."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up. `fast`: 0."""
    lr_decay_steps: PositiveInt | None = None
    """Step at which the learning rate reaches min_lr; max_steps when unset."""
    decay_lr: bool = True
    """False keeps the learning rate at its peak throughout, without warm-up."""
    beta1: Fraction = 0.9
    """AdamW's first moment decay."""
    beta2: Fraction = 0.99
    """AdamW's second moment decay."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of matrices and embeddings. `fast`: 0."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 switches clipping off. `fast`: 0."""

    # Evaluation and logging
    eval_interval: PositiveInt = 250
    """Steps between estimates of train and val loss."""
    eval_batches: PositiveInt = 20
    """Batches per estimate and split."""
    log_interval: PositiveInt = 10
    """Steps between logged points of the training loss."""
    final_eval: Literal["batches", "full"] = "batches"
    """`full` evaluates the whole val split at the end and logs it as val/loss_full."""
    sample_tokens: NonNegativeInt = 500
    """Characters of sample text written at the end."""

    # Numerics
    seed: NonNegativeInt = 1337
    """Decides initial weights, the order of the data and dropout."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Precision of the forward and backward pass; `auto` is bfloat16 on a GPU that has it, and on a processor
    that multiplies it in hardware (AVX512-BF16 or AMX)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes what the placement granted, else a GPU if there is one."""
    compile: Literal["auto"] | bool = "auto"
    """`auto` starts uncompiled and goes over to a compiled step, which is made meanwhile where the run is
    long enough and kept for later runs on the machine. `true` compiles first, so that every step is made in
    the same way; `false` never compiles. Compiling needs a C++ compiler."""
    cuda_graph: bool = True
    """On a GPU, launch each step as one CUDA graph: the same results, sooner."""
    gpu_kernels: Literal["auto"] | bool = "auto"
    """In a compiled step on a GPU, in bfloat16: attention, norms and MLP by Triton kernels of our own. `auto`
    takes them on the GPUs and from the sizes on for which they were measured to be faster."""

    # Guards
    nonfinite: Literal["stop", "rewind"] = "stop"
    """When a loss or gradient is not finite: `stop` with an error, or `rewind` to the last checkpoint and go
    on from there with the batches that follow the bad one. Such a state is never saved."""
    max_rewinds: PositiveInt = 3
    """A run that diverges once more than this stops, also under `rewind`."""
    stop_when: StopWhen | None = None
    """End early, as finished, by the val loss: `{patience: 5}`, `{val_loss: 1.47}` or both."""

    # Checkpoints (outside `orch` or where the spec's checkpoint policy does not say otherwise)
    checkpoint_interval: NonNegativeInt = 0
    """Steps between checkpoints; 0 writes one at the end and on SIGTERM."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 0.0
    """Minutes between checkpoints, besides checkpoint_interval; 0 switches this off."""
    checkpoint_best: bool = False
    """Write a checkpoint, too, whenever an evaluation finds a new lowest val loss."""
    probe_tolerance: Annotated[float, Field(gt=0)] = 1e-3
    """Largest accepted relative difference of the probe batch's fp32 loss before and after a restore."""

    @model_validator(mode="wrap")
    @classmethod
    def _by_recipe(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Give settings that are left out the recipe's defaults; they still count as not set."""
        if not isinstance(data, Mapping) or not isinstance(data.get("recipe"), str):
            return handler(data)
        config = handler({**RECIPE_DEFAULTS.get(data["recipe"], {}), **data})
        config.__pydantic_fields_set__.intersection_update(data)
        return config

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.recipe == "fast" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"n_embd ({self.n_embd}) over n_head ({self.n_head}) must be even with recipe fast, which "
                f"rotates pairs of channels"
            )
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batches ({self.micro_batches})"
            )
        if self.min_lr > self.learning_rate:
            raise ValueError(f"min_lr ({self.min_lr}) must not exceed learning_rate ({self.learning_rate})")
        return self

    @property
    def decay_steps(self) -> int:
        """Step at which the decay of the learning rate ends."""
        return self.lr_decay_steps or self.max_steps
