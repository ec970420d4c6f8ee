"""Checks of sweeps that concern several settings at once, each answered with the place that has to change.

What is quick is checked whenever a sweep is read, also from the ledger: :func:`wrong_in_parameter`,
:func:`wrong_in_sweep`. Whether every value and every combination of values is a spec that would be
accepted is checked once, before anything runs: :mod:`orchestrator.spec.trial_checks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import InitErrorDetails

from orchestrator.spec.checks import mistake
from orchestrator.spec.space import count, ordered, same, size

if TYPE_CHECKING:
    from orchestrator.spec.sweep import Parameter, SweepSpec

MAX_GRID: Final = 100_000
"""Most points of a grid."""
MAX_INT: Final = 2**53
"""Whole numbers up to here are exact wherever samplers compute with them."""
MAX_NAME: Final = 56
"""A trial's name is its sweep's with a dash and a number of at most six digits, and is a name itself."""
OURS: Final = ("name", "experiment")

Errors = Iterator[InitErrorDetails]


# ------------------------------------------------------------------ one parameter


def wrong_in_parameter(parameter: Parameter) -> list[InitErrorDetails]:
    """What contradicts itself in a parameter."""
    given = [kind for kind in ("choice", "int", "float") if getattr(parameter, kind) is not None]
    if len(given) != 1:
        got = f"{' and '.join(given)}" if given else "none of them"
        return [mistake((), f"expected one of choice, int and float, got {got}")]
    if parameter.choice is not None:
        return [*_wrong_in_choice(parameter, parameter.choice)]
    return [*_wrong_in_range(parameter, given[0], *getattr(parameter, given[0]))]


def _wrong_in_choice(parameter: Parameter, values: list[Any]) -> Errors:
    seen: dict[Any, int] = {}
    for number, value in enumerate(values):
        if value in seen:
            yield mistake(("choice", number), f"{value!r} is there twice", value)
        seen[value] = number
    for key in ("log", "step"):
        if getattr(parameter, key):
            yield mistake((key,), "is for `int` and `float`, but this is a choice")


def _wrong_in_range(parameter: Parameter, kind: str, low: float, high: float) -> Errors:
    if not low < high:
        yield mistake((kind,), f"expected the lower end first, got {low:g} and {high:g}", [low, high])
        return
    if kind == "int" and max(-low, high) > MAX_INT:
        yield mistake((kind,), f"expected numbers of at most {MAX_INT}", [low, high])
        return
    if parameter.log and low <= 0:
        yield mistake(("log",), f"a logarithmic scale needs values above 0, but the range begins at {low:g}")
    if parameter.step is None:
        return
    if parameter.log:
        yield mistake(("step",), "a logarithmic scale has no steps: expected either `log` or `step`")
    if kind == "int" and parameter.step % 1:
        yield mistake(("step",), f"expected a whole number, got {parameter.step:g}", parameter.step)
        return
    steps = (high - low) / parameter.step
    if steps > MAX_INT:
        yield mistake(("step",), "expected larger steps: these are more values than can be counted")
    elif steps < 1 or not math.isclose(steps, round(steps), rel_tol=1e-9):
        fits = f"such as {low + max(math.floor(steps), 1) * parameter.step:g}"
        yield mistake(
            ("step",),
            f"steps of {parameter.step:g} from {low:g} do not end at {high:g}; an end that fits: {fits}",
        )


# ------------------------------------------------------------------ the whole sweep


def wrong_in_sweep(sweep: SweepSpec) -> list[InitErrorDetails]:
    """What contradicts itself in a sweep, except for values and their combinations."""
    conditions = [*_wrong_in_conditions(sweep.space)]
    found = [*_wrong_in_name(sweep), *_wrong_in_targets(sweep), *conditions]
    found += [*_wrong_in_rungs(sweep), *_wrong_in_pools(sweep)]
    if not conditions:
        found += [*_wrong_in_sampler(sweep), *_wrong_in_budget(sweep)]
    return found


def _wrong_in_name(sweep: SweepSpec) -> Errors:
    if len(sweep.name) > MAX_NAME:
        yield mistake(
            ("name",),
            f"expected at most {MAX_NAME} characters, as trials are called {sweep.name[:8]}...-0",
            sweep.name,
        )


def _wrong_in_targets(sweep: SweepSpec) -> Errors:
    for path in sweep.space:
        if path in OURS:
            yield mistake(("space", path, "[key]"), f"`{path}` is the same for all trials of a sweep", path)
        elif sweep.repeat > 1 and path.split(".")[-2:] == ["trainer", "seed"]:
            yield mistake(
                ("space", path, "[key]"), "`repeat` decides about the seed: vary it or repeat", path
            )
    if sweep.repeat > 1 and sweep.pruner.kind != "none":
        yield mistake(
            ("repeat",),
            "repeat compares whole trials: expected `pruner: {kind: none}` beside it",
            sweep.repeat,
        )


def _wrong_in_conditions(space: Mapping[str, Parameter]) -> Errors:
    before: dict[str, Parameter] = {}
    for path, parameter in space.items():
        for other, values in parameter.when.items():
            place = ("space", path, "when", other)
            if other not in before:
                later = "stands after it" if other in space else "is not in the space"
                yield mistake(
                    (*place, "[key]"), f"expected a parameter that stands before it; it {later}", other
                )
                continue
            for number, value in enumerate(values):
                if not _can_be(before[other], value):
                    yield mistake((*place, number), f"{other} is never {value!r}", value)
        before[path] = parameter


def _can_be(parameter: Parameter, value: Any) -> bool:
    if parameter.choice is not None:
        return any(same(one, value) for one in parameter.choice)
    if isinstance(value, bool | str):
        return False
    low, high = parameter.int or parameter.float or (0, 0)
    if not low <= value <= high or (parameter.int and value % 1):
        return False
    steps = (value - low) / (parameter.step or 1)
    return parameter.step is None or math.isclose(steps, round(steps), abs_tol=1e-9)


def _wrong_in_rungs(sweep: SweepSpec) -> Errors:
    pruner = sweep.pruner
    trainer = sweep.base.trainer
    if trainer is not None and pruner.max_steps not in (None, trainer.max_steps):
        yield mistake(
            ("pruner", "max_steps"),
            f"is for `command`: the trainer runs for {trainer.max_steps} steps, by its own max_steps",
            pruner.max_steps,
        )
    if not pruner.has_rungs:
        return
    if pruner.first_steps is None:
        yield mistake(("pruner",), f"{pruner.kind} needs `first_steps`, the step of the first rung")
    if trainer is None and pruner.max_steps is None:
        yield mistake(("pruner",), f"{pruner.kind} needs `max_steps`, the steps of a whole run")
    if trainer is not None:
        yield from _wrong_in_lengths(sweep)
    most = sweep.max_steps
    if most is not None and pruner.first_steps is not None and pruner.first_steps >= most:
        yield mistake(
            ("pruner", "first_steps"),
            f"expected fewer than the {most} steps of a whole run, got {pruner.first_steps}",
            pruner.first_steps,
        )


def _wrong_in_lengths(sweep: SweepSpec) -> Errors:
    """Trials of different lengths, which cannot be compared at rungs."""
    why = f"{sweep.pruner.kind} compares runs of the same length: expected one `trainer.max_steps` for all"
    for path in sweep.space:
        if path.split(".")[-2:] == ["trainer", "max_steps"]:
            yield mistake(("space", path, "[key]"), why, path)
    for number, variant in enumerate(sweep.base.placement):
        if "max_steps" in variant.trainer:
            yield mistake(("base", "placement", number, "trainer", "max_steps"), why)


def _wrong_in_pools(sweep: SweepSpec) -> Errors:
    pruner = sweep.pruner
    if pruner.pools and not pruner.has_rungs:
        yield mistake(("pruner", "pools"), f"is for rungs: expected asha or hyperband, got {pruner.kind}")
    known = {variant.pool for variant in sweep.base.placement}
    for number, pool in enumerate(pruner.pools):
        if pool not in known:
            yield mistake(
                ("pruner", "pools", number),
                f"expected a pool of the base's placements, {', '.join(sorted(known))}, got '{pool}'",
                pool,
            )


def _wrong_in_sampler(sweep: SweepSpec) -> Errors:
    if sweep.sampler.kind == "cmaes":
        numeric = [path for path, one in sweep.space.items() if evolves(one)]
        if len(numeric) < 2:
            got = f"got only {numeric[0]}" if numeric else "got none"
            yield mistake(
                ("sampler", "kind"),
                f"cmaes needs at least two parameters that are numbers without `when`, {got}; tpe takes any",
            )
    if sweep.sampler.kind != "grid":
        return
    endless = [path for path, one in sweep.space.items() if count(one) is None]
    for path in endless:
        yield mistake(("space", path), "a grid needs values that can be counted: expected `step` or `choice`")
    most = math.prod(count(one) or 1 for one in sweep.space.values())  # conditions only take points away
    if not endless and most > MAX_GRID and size(sweep.space, MAX_GRID) is None:
        yield mistake(
            ("sampler", "kind"), f"this grid has more than {MAX_GRID} points; tpe or random take any"
        )


def evolves(parameter: Parameter) -> bool:
    """Whether CMA-ES works on a parameter; others are drawn at random beside it."""
    return not parameter.when and ordered(parameter) and count(parameter) != 1


def _wrong_in_budget(sweep: SweepSpec) -> Errors:
    budget = sweep.budget
    if sweep.sampler.kind == "grid" or budget.trials or budget.duration or budget.gpu_hours or budget.kwh:
        return
    alone = "; `target` alone may never be met" if budget.target is not None else ""
    yield mistake(
        ("budget",), f"nothing would end this sweep: expected trials, duration, gpu_hours or kwh{alone}"
    )
