"""The sweep spec: a base spec, what to vary in it, what to look for, and how much may be spent on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.spec.models import RunSpec
from orchestrator.spec.values import FreeText, MetricName, Name, Seconds

Value = bool | int | float | str
"""A value of a parameter."""
Number = float


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Parameter(_Model):
    """What a parameter may be: one of `choice`, `int` and `float`."""

    choice: Annotated[list[Value], Field(min_length=1, max_length=1000)] | None = None
    """One of these values."""
    int: tuple[int, int] | None = None
    """A whole number from the first to the second, both included."""
    float: tuple[float, float] | None = None
    """A number from the first to the second."""
    log: bool = False
    """Sample on a logarithmic scale: as many values from 1e-4 to 1e-3 as from 1e-3 to 1e-2."""
    step: Annotated[Number, Field(gt=0)] | None = None
    """Distance of neighbouring values, counted from the first."""
    when: dict[str, list[Value]] = Field(default_factory=dict)
    """Only where other parameters, which stand before it, have one of these values."""


class Objective(_Model):
    """What is looked for."""

    metric: MetricName = "val/loss"
    """A metric that the program logs."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Whether small or large values are good."""
    value: Literal["best", "last"] = "best"
    """Of one run: its best value, or its last."""


class Sampler(_Model):
    """How points are chosen."""

    kind: Literal["grid", "random", "tpe", "cmaes", "gp"] = "tpe"
    """`grid` takes every combination, `random` draws, the others learn from the trials before."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The same seed and the same results give the same points."""
    startup_trials: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Points that are drawn at random before learning begins."""


class Pruner(_Model):
    """Which trials are ended early."""

    kind: Literal["none", "median", "asha", "hyperband"] = "none"
    """`median` ends a trial that is worse than the median of the others at the same step. `asha` compares
    trials at rungs and lets the best go on from their checkpoints; `hyperband` begins at different rungs."""
    first_steps: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Step of the first rung, or before which `median` ends nothing. Needed for rungs."""
    factor: Annotated[int, Field(ge=2, le=100)] = 3
    """Of so many trials one goes on, with so many times the steps."""
    pools: Annotated[list[Name], Field(max_length=16)] = Field(default_factory=list)
    """Pool of each rung, such as `[laptop, gpu]`; the last one serves all later rungs. Empty: any placement
    of the base spec."""
    startup_trials: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Trials that `median` compares with at least."""


class Budget(_Model):
    """What the whole sweep may use. What is met first ends it."""

    trials: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Points to try; of a grid, all of them when unset."""
    duration: Seconds | None = None
    """Time of training over all trials, such as `8h`."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of GPUs over all trials."""
    kwh: Annotated[float, Field(gt=0)] | None = None
    """Energy over all trials, measured or estimated."""
    target: float | None = None
    """A value of the objective that is good enough."""


class SweepSpec(_Model):
    """A search over specs. Each trial is an ordinary run."""

    name: Name
    """What people call the sweep; its trials are `name-0`, `name-1` and so on."""
    base: RunSpec
    """The spec that is varied, written here or as the path of a file. It needs no name."""
    space: Annotated[dict[str, Parameter], Field(min_length=1, max_length=100)]
    """What to vary, by its place in the spec, such as `trainer.learning_rate`."""
    objective: Objective = Objective()
    """What is looked for."""
    sampler: Sampler = Sampler()
    """How points are chosen."""
    pruner: Pruner = Pruner()
    """Which trials are ended early."""
    budget: Budget = Budget()
    """What may be used."""
    parallel: Annotated[int, Field(ge=1, le=1000)] = 1
    """Trials at a time."""
    repeat: Annotated[int, Field(ge=1, le=100)] = 1
    """Trials of each point, with seeds of their own; the mean counts."""
    tags: dict[Name, FreeText] = Field(default_factory=dict)
    """Free labels, shown in MLflow."""

    def trial_spec(self, params: dict[str, Any], number: int, repeat: int) -> RunSpec:
        """The base with a point's values put in.

        Raises:
            SpecError: the values do not fit the base.
        """
        raise NotImplementedError

    @model_validator(mode="after")
    def _repeats_are_whole(self) -> Self:
        if self.repeat > 1 and self.pruner.kind != "none":
            raise ValueError("repeat compares whole trials: expected `pruner: {kind: none}` beside it")
        return self
