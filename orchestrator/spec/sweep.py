"""The sweep spec: a base spec, what to vary in it, what to look for, and how much may be spent on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    model_validator,
)

from orchestrator.errors import Problem, SpecError
from orchestrator.spec import sweep_checks
from orchestrator.spec.checks import merge_errors
from orchestrator.spec.models import RunSpec
from orchestrator.spec.values import NAME_PATTERN, FreeText, MetricName, Name, Seconds, Words

Integer: TypeAlias = int
Number: TypeAlias = float
_VALUE_WORDS = "a number, a text, true or false"


def _plain(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not isfinite(value)):
        raise ValueError(f"expected {_VALUE_WORDS}")
    return value


Value = Annotated[bool | int | float | str, BeforeValidator(_plain), Words(_VALUE_WORDS)]
"""A value of a parameter."""


def _one_or_several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Parameter(_Model):
    """What a parameter may be: one of `choice`, `int` and `float`. A list alone means `choice`."""

    choice: Annotated[list[Value], Field(min_length=1, max_length=1000)] | None = None
    """One of these values. Numbers in ascending order are understood as neighbours of each other."""
    int: tuple[Integer, Integer] | None = None
    """A whole number from the first to the second, both included."""
    float: tuple[Number, Number] | None = None
    """A number from the first to the second."""
    log: bool = False
    """Sample on a logarithmic scale: as many values from 1e-4 to 1e-3 as from 1e-3 to 1e-2."""
    step: Annotated[Number, Field(gt=0)] | None = None
    """Distance of neighbouring values, counted from the first."""
    when: dict[str, Annotated[list[Value], BeforeValidator(_one_or_several), Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """Only where other parameters, which stand before it, have one of these values."""

    @model_validator(mode="wrap")
    @classmethod
    def _makes_sense(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Take a list as `choice`, and report everything that does not fit together."""
        parameter = handler({"choice": list(data)} if isinstance(data, list | tuple) else data)
        if wrong := sweep_checks.wrong_in_parameter(parameter):
            raise merge_errors(cls.__name__, [], wrong)
        return parameter


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
    max_steps: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Steps of a whole run, where `command` runs; the trainer's are in `trainer.max_steps`. Needed for
    rungs."""
    factor: Annotated[int, Field(ge=2, le=100)] = 3
    """Of so many trials one goes on, with so many times the steps."""
    pools: Annotated[list[Name], Field(max_length=16)] = Field(default_factory=list)
    """Pool of each rung, such as `[laptop, gpu]`; the last one serves all later rungs. Empty: any placement
    of the base spec."""
    startup_trials: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Trials that `median` compares with at least."""

    @property
    def has_rungs(self) -> bool:
        """Whether trials are compared at rungs."""
        return self.kind in ("asha", "hyperband")


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

    @property
    def max_steps(self) -> int | None:
        """Steps of a whole run, where they are known and the same for all trials."""
        if self.base.trainer is None:
            return self.pruner.max_steps
        return None if "trainer.max_steps" in self.space else self.base.trainer.max_steps

    def trial_spec(self, params: Mapping[str, Any], number: int, repeat: int) -> RunSpec:
        """The base with a point's values put in, as a run called `<sweep>-<number>`.

        With `repeat` above 1 the run is tagged `repeat`, and the built-in trainer's seed is the base's plus
        `repeat`: the same seeds for every point, so that points can be compared in pairs.

        Raises:
            SpecError: the values do not fit the base.
        """
        # Only who makes trials needs to know what stands where; a client that looks at sweeps reads no YAML.
        from orchestrator.spec.trial_checks import path_of, plain_base, problems_of_trial, put

        data = plain_base(self.base)
        data["name"] = f"{self.name}-{number}"
        try:
            for path, value in params.items():
                put(data, path_of(path), value)
            if self.repeat > 1:
                _seed(data, self.base, repeat)
            return RunSpec.model_validate(data)
        except ValidationError as error:
            problems = problems_of_trial(error, data["name"])
        except ValueError as error:
            problems = [Problem(data["name"], 0, 0, "", str(error))]
        raise SpecError(problems)

    @model_validator(mode="wrap")
    @classmethod
    def _every_problem(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill in the base's name, and report everything that does not fit together."""
        sweep = handler(_with_named_base(data))
        if wrong := sweep_checks.wrong_in_sweep(sweep):
            raise merge_errors(cls.__name__, [], wrong)
        return sweep

    @field_serializer("base", mode="wrap")
    def _what_was_left_out_stays_left_out(self, base: RunSpec, handler: SerializerFunctionWrapHandler) -> Any:
        """The trainer's defaults are not written out: a parameter may decide about them (`recipe`)."""
        data = handler(base)
        if base.trainer is not None:
            given = base.trainer.model_fields_set
            data["trainer"] = {key: value for key, value in data["trainer"].items() if key in given}
        return data


def _with_named_base(data: Any) -> Any:
    if not isinstance(data, Mapping) or not isinstance(data.get("base"), Mapping) or "name" in data["base"]:
        return data
    name = data.get("name")
    named = isinstance(name, str) and re.fullmatch(NAME_PATTERN, name, re.ASCII)
    return {**data, "base": {**data["base"], "name": name if named else "base"}}


def _seed(data: dict[str, Any], base: RunSpec, repeat: int) -> None:
    data["tags"] = {**data.get("tags", {}), "repeat": str(repeat)}
    if base.trainer is None:
        return
    data["trainer"]["seed"] = base.trainer.seed + repeat
    for variant in data["placement"]:
        if "seed" in variant["trainer"]:
            variant["trainer"]["seed"] += repeat
