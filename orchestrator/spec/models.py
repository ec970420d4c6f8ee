"""The spec: the validated, immutable description of what to run."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trainer.config import TrainerConfig

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B?|B)?\s*$", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)\s*$", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(value: Any) -> Any:
    """Bytes from an integer or a text such as `6GiB` or `500MB`."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if not match:
        raise ValueError("expected a size such as 6GiB or 500MB")
    unit = (match[2] or "B").upper().rstrip("B")
    power = "KMGT".find(unit[:1]) + 1 if unit else 0
    return int(float(match[1]) * (1024 if unit.endswith("I") else 1000) ** power)


def parse_duration(value: Any) -> Any:
    """Seconds from a number or a text such as `90s`, `30m`, `8h` or `2d`."""
    if not isinstance(value, str):
        return value
    match = _DURATION.match(value)
    if not match:
        raise ValueError("expected a duration such as 90s, 30m, 8h or 2d")
    return float(match[1]) * _SECONDS[match[2].lower()]


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError("expected letters, digits, '.', '_' or '-', at most 63, starting with a letter or digit")
    return value


Name = Annotated[str, AfterValidator(_name)]
ByteSize = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Variant(_Model):
    """One acceptable placement. A spec lists them best first."""

    pool: Name
    """Label of the nodes that may run this, such as `laptop` or `gpu`."""
    cpus: Annotated[int, Field(gt=0, le=4096)] = 1
    """CPU threads granted to the program."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """Whole GPUs granted to the program."""
    memory: ByteSize | None = None
    """Main memory to reserve, such as `2GiB`."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Trainer settings that differ on this placement, such as `dtype: bfloat16`."""


class CheckpointPolicy(_Model):
    """When to save and what to keep."""

    every_steps: Annotated[int, Field(gt=0)] | None = None
    """Save every N steps."""
    every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Save every M minutes."""
    keep_last: Annotated[int, Field(ge=1)] = 3
    """Keep the newest K checkpoints."""
    keep_best: Annotated[int, Field(ge=0)] = 1
    """Keep also the K best by `metric`."""
    metric: str = "val/loss"
    """What "best" means."""
    mode: Literal["min", "max"] = "min"
    """Whether the best value of `metric` is the smallest or the largest."""


class CommandProgram(_Model):
    """Any program: an argument list, run as it is in a directory of its own."""

    argv: Annotated[list[str], Field(min_length=1)]
    """The program and its arguments. `{python}` stands for the node's Python interpreter."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables to add. Secrets do not belong here."""
    workdir: str | None = None
    """Directory on the node to run in; a fresh one when unset."""


class RunSpec(_Model):
    """What to run, where it may run, and how to keep it safe."""

    name: Name
    """What people call the run."""
    experiment: Name = "default"
    """MLflow experiment that the run belongs to."""
    trainer: TrainerConfig | None = None
    """Configuration of the built-in trainer. Give this or `command`."""
    command: CommandProgram | None = None
    """Any other program. Give this or `trainer`."""
    placement: Annotated[list[Variant], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: [Variant(pool="local")]
    )
    """Acceptable placements, best first."""
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    """When to save and what to keep."""
    resume_from: str | None = None
    """Checkpoint to begin from: a run, `run@step`, or the path of a checkpoint directory."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Higher goes first."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often an unexplained failure is tried again."""
    max_duration: Seconds | None = None
    """Longest time of training over all attempts, such as `8h`."""
    tags: dict[Name, str] = Field(default_factory=dict)
    """Free labels, shown in MLflow."""

    @model_validator(mode="after")
    def _one_program(self) -> Self:
        if (self.trainer is None) == (self.command is None):
            raise ValueError("expected exactly one of `trainer` and `command`")
        return self

    @model_validator(mode="after")
    def _variants_fit(self) -> Self:
        for number, variant in enumerate(self.placement):
            if variant.trainer and self.trainer is None:
                raise ValueError(f"placement.{number}.trainer needs `trainer`, but the spec has `command`")
            self.trainer_for(variant)
        return self

    def trainer_for(self, variant: Variant) -> TrainerConfig | None:
        """The trainer's configuration with the variant's differences applied; None for a command."""
        if self.trainer is None:
            return None
        return TrainerConfig.model_validate({**self.trainer.model_dump(), **variant.trainer})
