"""The spec: the validated, immutable description of what to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from orchestrator.spec import checks
from orchestrator.spec.values import ByteSize, EnvName, FreeText, MetricName, Name, NodePath, Seconds, Text
from orchestrator.spec.window import WindowRules
from trainer.config import TrainerConfig


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Variant(_Model):
    """One acceptable placement. A spec lists them best first."""

    pool: Name
    """Label of the nodes that may run this, such as `laptop` or `gpu`."""
    cpus: Annotated[int, Field(ge=1, le=4096)] = 1
    """CPU threads granted to the program."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """Whole GPUs granted to the program."""
    gpu_memory: ByteSize | None = None
    """Share one GPU with other runs: this much of its memory, such as `6GiB`, which the program cannot
    exceed. A whole GPU when unset."""
    memory: ByteSize | None = None
    """Main memory to reserve, such as `2GiB`."""
    ranks: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that start together or not at all, as torchrun's. The resources are those of each."""
    trainer: Annotated[dict[str, Any], BeforeValidator(checks.check_overrides)] = Field(default_factory=dict)
    """Trainer settings that differ on this placement, such as `dtype: bfloat16`."""

    @model_validator(mode="after")
    def _one_gpu_is_shared(self) -> Self:
        if self.gpu_memory is not None and self.gpus != 1:
            raise ValueError(
                f"gpu_memory is a share of one GPU: expected `gpus: 1` beside it, got {self.gpus}"
            )
        return self


class CheckpointPolicy(_Model):
    """When to save and what to keep."""

    every_steps: Annotated[int, Field(gt=0, le=10**12)] | None = None
    """Save every N steps."""
    every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Save every M minutes."""
    keep_last: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Keep the newest K checkpoints."""
    keep_best: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Keep also the K best by `metric`."""
    keep_every: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Keep also the first one at or after every multiple of N steps."""
    grace: Seconds = 600.0
    """How long the data of a removed checkpoint stays for those who are reading it, such as `10m`."""
    metric: MetricName = "val/loss"
    """What "best" means."""
    mode: Literal["min", "max"] = "min"
    """Whether the best value of `metric` is the smallest or the largest."""


class CommandProgram(_Model):
    """Any program: an argument list, run as it is in a directory of its own."""

    argv: Annotated[list[FreeText], Field(min_length=1)]
    """The program and its arguments. `{python}` stands for the node's Python interpreter."""
    env: dict[EnvName, FreeText] = Field(default_factory=dict)
    """Environment variables to add. Secrets do not belong here: set them on the node."""
    workdir: NodePath | None = None
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
    resume_from: Text | None = None
    """Checkpoint to begin from: a run, `run@step`, `run@tag`, `import:name`, or the path of a checkpoint
    directory."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Higher goes first, and takes the place of lower ones, which save and wait."""
    start: Literal["any", "best"] = "any"
    """`any` begins on the first placement that is free. `best` waits for the first one in the list, for
    `wait` at most."""
    wait: Seconds = 3600.0
    """With `start: best`, the longest wait for the best placement."""
    migrate: Literal["auto", "never"] = "auto"
    """`auto` moves a run to a better placement when one is free and the move pays. `never`: it stays where it
    began, unless its user moves it or the machine is lost."""
    away: Seconds = 600.0
    """How long a machine may be unreachable, asleep for example, before the run goes on elsewhere."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often an unexplained failure is tried again."""
    max_duration: Seconds | None = None
    """Longest time of training over all attempts, such as `8h`."""
    deadline: AwareDatetime | None = None
    """When it has to have ended, such as `2027-03-01T07:00:00+01:00`; it is stopped then."""
    window: WindowRules | None = None
    """Hours in which it may execute, such as `22:00-07:00`; at their end it saves, and goes on at the next
    ones."""
    max_price: Annotated[float, Field(ge=0)] | None = None
    """Executes only while a kWh of electricity costs at most this, by the tariff of `orch tariff`."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Most hours of GPUs that all attempts together may use."""
    kwh: Annotated[float, Field(gt=0)] | None = None
    """Most energy that all attempts together may use, in kilowatt-hours, measured or estimated."""
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
