"""The spec: the validated, immutable description of what to run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from orchestrator.spec import checks
from trainer.config import TrainerConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B?|B)?\s*$", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)\s*$", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(value: Any) -> Any:
    """Bytes from an integer or a text such as `6GiB` or `500MB`."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if not match:
        raise ValueError(f"expected {_SIZE_WORDS}, got {value[:40]!r}")
    unit = (match[2] or "B").upper().rstrip("B")
    power = "KMGT".find(unit[:1]) + 1 if unit else 0
    return int(float(match[1]) * (1024 if unit.endswith("I") else 1000) ** power)


def parse_duration(value: Any) -> Any:
    """Seconds from a number or a text such as `90s`, `30m`, `8h` or `2d`."""
    if not isinstance(value, str):
        return value
    match = _DURATION.match(value)
    if not match:
        raise ValueError(f"expected {_DURATION_WORDS}, got {value[:40]!r}")
    return float(match[1]) * _SECONDS[match[2].lower()]


@dataclass(frozen=True)
class Words:
    """Annotation: what is expected here, for people."""

    text: str
    free: bool = False
    """Any text, numbers as they were written included."""


_NAME_WORDS = "a name of letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit"
_SIZE_WORDS = "a size such as 6GiB or 500MB"
_DURATION_WORDS = "a duration such as 90s, 30m, 8h or 2d"


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"expected {_NAME_WORDS}, got {value[:70]!r}")
    return value


def _written(value: Any) -> Any:
    """Numbers and truth values as text; specs that come as YAML keep the user's own spelling."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


Name = Annotated[str, AfterValidator(_name), Words(_NAME_WORDS)]
FreeText = Annotated[str, BeforeValidator(_written), Words("text", free=True)]
ByteSize = Annotated[int, BeforeValidator(parse_size), Field(gt=0), Words(_SIZE_WORDS)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0), Words(_DURATION_WORDS)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


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
    trainer: Annotated[dict[str, Any], BeforeValidator(checks.check_overrides)] = Field(default_factory=dict)
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

    argv: Annotated[list[FreeText], Field(min_length=1)]
    """The program and its arguments. `{python}` stands for the node's Python interpreter."""
    env: dict[str, FreeText] = Field(default_factory=dict)
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
    tags: dict[Name, FreeText] = Field(default_factory=dict)
    """Free labels, shown in MLflow."""

    @model_validator(mode="wrap")
    @classmethod
    def _every_problem(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report what is wrong in single settings and what contradicts itself together."""
        more = checks.contradictions(data) if isinstance(data, Mapping) else []
        try:
            spec = handler(data)
        except ValidationError as error:
            own = [detail for detail in error.errors(include_url=False) if not checks.is_relation(detail)]
            raise checks.merge_errors(cls.__name__, own, more) from None
        if more:
            raise checks.merge_errors(cls.__name__, [], more)
        return spec

    def trainer_for(self, variant: Variant) -> TrainerConfig | None:
        """The trainer's configuration with the variant's differences applied; None for a command."""
        if self.trainer is None:
            return None
        return TrainerConfig.model_validate({**self.trainer.model_dump(), **variant.trainer})
