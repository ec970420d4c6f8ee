"""A sweep as somebody might have it: 30 trials, two nights, a laptop and a GPU box, and what goes wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.analysis.report import Axis, Entry, Kept, Report
from orchestrator.analysis.report.curves import best_of, curve, trained
from orchestrator.domain.energy import EnergySource
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.domain.sweeps import SweepState, TrialState
from orchestrator.messages import AttemptView, CheckpointView, PointView
from orchestrator.messages_sweeps import SweepDetail, SweepUse, SweepView, TrialView
from orchestrator.spec.models import RunSpec, Variant
from orchestrator.spec.sweep import SweepSpec
from trainer.config import TrainerConfig

NIGHT = datetime(2026, 3, 2, 22, 0, tzinfo=UTC)
NIGHTS = (NIGHT, NIGHT + timedelta(days=1))
HOURS = 9.0
STEPS, EVERY = 5000, 100
METRIC = "val/loss"
SAMPLE = """ROMEO:
What say'st thou, gentle night, that hast no star
To light the window where my lady sleeps?
I'll stand a while, and count the hours in turn,
Till morning brings the answer that she keeps.

NURSE:
Good sir, the hour is late, and she's abed;
Come you again to-morrow, as I said.
"""
DEVICES = {"laptop": "AMD Ryzen 7 7840U", "gaming-pc": "NVIDIA GeForce RTX 4070 Ti"}
STEP_S = {"laptop": 2.9, "gaming-pc": 0.9}
SPACE: dict[str, dict[str, Any]] = {
    "trainer.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    "trainer.dropout": {"float": [0.0, 0.4]},
    "trainer.batch_size": {"choice": [12, 24, 48]},
    "trainer.recipe": {"choice": ["nanogpt", "fast"]},
    "trainer.ngrams": {"int": [1, 4], "when": {"trainer.recipe": ["fast"]}},
}


def sweep_spec(name: str = "night-search", trials: int = 30) -> SweepSpec:
    """The search, with rungs at 500, 1,500 and 4,500 steps."""
    base = RunSpec(
        name="trial",
        experiment="shakespeare",
        trainer=TrainerConfig(max_steps=STEPS),
        placement=[Variant(pool="gpu", gpus=1), Variant(pool="laptop", cpus=4)],
    )
    return SweepSpec.model_validate(
        {
            "name": name,
            "base": base.model_dump(mode="json", exclude_defaults=True),
            "space": SPACE,
            "pruner": {"kind": "asha", "first_steps": 500, "factor": 3},
            "budget": {"trials": trials},
            "parallel": 3,
        }
    )


@dataclass
class _Slot:
    """A place on a machine, free from a time on."""

    node: str
    free: datetime


def sweep_report(trials: int = 30, seed: int = 1, points: int = STEPS // EVERY) -> Report:
    """The whole sweep as the controller would collect it. Numbers of energy are made of watts and time."""
    chance = random.Random(seed)
    slots = [_Slot("gaming-pc", NIGHT), _Slot("gaming-pc", NIGHT), _Slot("laptop", NIGHT)]
    entries = [_entry(number, chance, slots, points) for number in range(trials)]
    best = min(
        (e for e in entries if e.state == "complete"), key=lambda e: e.value if e.value is not None else 9.0
    )
    place = entries.index(best)
    return Report(
        title="night-search",
        at=max(one.ended_at or NIGHT for e in entries for one in e.attempts) + timedelta(seconds=20),
        metric=METRIC,
        direction="minimize",
        entries=tuple(entries),
        best=place,
        axes=axes(),
        metrics=(METRIC,),
        importance={
            "trainer.learning_rate": 0.52,
            "trainer.recipe": 0.31,
            "trainer.dropout": 0.1,
            "trainer.batch_size": 0.05,
            "trainer.ngrams": 0.02,
        },
        kept=Kept(checkpoint(best), SAMPLE),
        sweep=sweep_detail(entries, best),
        links={
            "run": "http://127.0.0.1:5000/#/experiments/1/runs/0af3?workflowType=machine_learning",
            "compare": "http://127.0.0.1:5000/#/compare-runs?runs=%5B%220af3%22%5D",
            "charts": "http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART",
        },
        currency="EUR",
        zone=UTC,
        version="0.1.0",
    )


def axes() -> tuple[Axis, ...]:
    """The parameters of the search."""

    def axis(path: str, one: dict[str, Any]) -> Axis:
        choices = tuple(one["choice"]) if "choice" in one else None
        return Axis(path, path.rpartition(".")[2], bool(one.get("log")), choices)

    return tuple(axis(path, one) for path, one in SPACE.items())


def _params(chance: random.Random, number: int) -> dict[str, Any]:
    """Later points come nearer to a good learning rate, as a sampler that learns would have it."""
    spread = 1.0 if number < 10 else 0.35
    rate = 10 ** min(-2.0, max(-4.0, chance.gauss(-2.6 if number >= 10 else -3.0, spread)))
    recipe = "fast" if chance.random() < (0.5 if number < 10 else 0.8) else "nanogpt"
    found = {
        "trainer.learning_rate": rate,
        "trainer.dropout": round(chance.uniform(0.0, 0.4), 3),
        "trainer.batch_size": chance.choice([12, 24, 48]),
        "trainer.recipe": recipe,
    }
    return {**found, "trainer.ngrams": chance.randint(1, 4)} if recipe == "fast" else found


def _floor(params: dict[str, Any]) -> float:
    """Where training with these parameters ends up."""
    away = math.log10(params["trainer.learning_rate"]) + 2.55
    floor = 1.47 + 0.16 * away**2 + 0.5 * (params["trainer.dropout"] - 0.18) ** 2
    floor += {12: 0.05, 24: 0.02, 48: 0.0}[params["trainer.batch_size"]]
    return floor + (0.14 if params["trainer.recipe"] == "nanogpt" else -0.008 * params["trainer.ngrams"])


def _entry(number: int, chance: random.Random, slots: list[_Slot], points: int) -> Entry:
    params, run_id = _params(chance, number), f"t{number:07d}"
    floor = _floor(params)
    broken = number % 30 == 7
    steps = 1700 if broken else STEPS
    if not broken and floor > 1.62:
        steps = 500 if floor > 1.72 else 1500
    state = "failed" if broken else "pruned" if steps < STEPS else "complete"
    attempts = _attempts(run_id, steps, broken, slots, chance)
    values = _points(attempts, floor, chance, points)
    line = curve(values, attempts)
    best = best_of(line, True)
    seconds = trained(attempts, NIGHT)
    attempts = [one.model_copy(update=_energy(one)) for one in attempts]
    kwh = sum(one.energy_kwh or 0.0 for one in attempts)
    return Entry(
        run_id=run_id,
        name=f"night-search-{number}",
        state=state,
        message="its numbers are not finite any more" if broken else "",
        number=number,
        params=params,
        value=best[1] if best else None,
        step=steps,
        seconds=seconds,
        attempts=tuple(attempts),
        curves={METRIC: line},
        energy_kwh=kwh,
        cost=kwh * 0.32,
    )


def _energy(attempt: AttemptView) -> dict[str, Any]:
    assert attempt.started_at is not None
    assert attempt.ended_at is not None
    watts = 210 if attempt.node == "gaming-pc" else 38
    kwh = watts * (attempt.ended_at - attempt.started_at).total_seconds() / 3.6e6
    source = EnergySource.MEASURED if attempt.node == "gaming-pc" else EnergySource.ESTIMATED
    return {"energy_kwh": kwh, "energy_source": source, "cost": kwh * 0.32}


def _attempts(
    run_id: str, steps: int, broken: bool, slots: list[_Slot], chance: random.Random
) -> list[AttemptView]:
    """One attempt, or two where the night was over before the trial was."""
    slot = min(slots, key=lambda one: one.free)
    found, at = [], 0
    while at < steps:
        start = slot.free
        close = _closing(start)
        possible = int((close - start).total_seconds() / STEP_S[slot.node])
        until = min(steps, at + possible)
        end = start + timedelta(seconds=(until - at) * STEP_S[slot.node] + chance.uniform(5, 20))
        over = until < steps
        reason = Reason.OWNER if over else Reason.NOT_FINITE if broken else Reason.COMPLETED
        found.append(_attempt(len(found) + 1, slot.node, (start, end), (at, until), reason))
        slot.free = _next_night(start) if over else _within(end + timedelta(seconds=4))
        at = until
    return found


def _attempt(
    number: int, node: str, span: tuple[datetime, datetime], steps: tuple[int, int], reason: Reason
) -> AttemptView:
    broken = reason is Reason.NOT_FINITE
    return AttemptView(
        number=number,
        phase=Phase.ENDED,
        reason=reason,
        message="step 1,700: the loss is nan; the last good checkpoint is step 1,500" if broken else "",
        node=node,
        pool="laptop" if node == "laptop" else "gpu",
        device=DEVICES[node],
        first_step=steps[0],
        last_step=steps[1],
        exit_code=1 if broken else 0,
        created_at=span[0] - timedelta(seconds=2),
        started_at=span[0],
        ended_at=span[1],
    )


def _night(at: datetime) -> datetime:
    """The beginning of the night that this instant is in, or after."""
    return NIGHT + timedelta(days=max(0, (at - NIGHT).days))


def _closing(at: datetime) -> datetime:
    return _night(at) + timedelta(hours=HOURS)


def _next_night(at: datetime) -> datetime:
    return _night(at) + timedelta(days=1)


def _within(at: datetime) -> datetime:
    """The instant, or the next evening where the night is over."""
    return at if at < _closing(at) - timedelta(minutes=5) else _next_night(at)


def _points(attempts: list[AttemptView], floor: float, chance: random.Random, points: int) -> list[PointView]:
    every = max(1, STEPS // points)
    overfits = chance.uniform(0, 0.05)
    return [
        PointView(
            key=METRIC,
            step=step,
            time_ms=_time_of(one, step),
            value=_loss(step, floor, overfits) + chance.gauss(0, 0.006),
            attempt=one.number,
        )
        for one in attempts
        for step in _steps(one, every)
    ]


def _steps(attempt: AttemptView, every: int) -> Iterator[int]:
    first, last = attempt.first_step or 0, attempt.last_step or 0
    begin = first + every - first % every if first else 0
    return iter(range(begin, last + 1, every))


def _time_of(attempt: AttemptView, step: int) -> int:
    assert attempt.started_at is not None
    seconds = (step - (attempt.first_step or 0)) * STEP_S[attempt.node]
    return int((attempt.started_at.timestamp() + seconds) * 1000)


def _loss(step: int, floor: float, overfits: float) -> float:
    late = max(0.0, step - 3500) / 1500
    return floor + (4.17 - floor) * math.exp(-step / 160) + 0.34 * math.exp(-step / 900) + overfits * late**2


def sweep_detail(entries: list[Entry], best: Entry) -> SweepDetail:
    """What the API answers about the sweep."""
    counts = {state: sum(e.state == state.value for e in entries) for state in TrialState}
    kwh = sum(e.energy_kwh or 0.0 for e in entries)
    view = SweepView(
        id="s7g4k2mn",
        name="night-search",
        experiment="shakespeare",
        state=SweepState.FINISHED,
        metric=METRIC,
        direction="minimize",
        counts={state: number for state, number in counts.items() if number},
        total=len(entries),
        use=SweepUse(
            trials=len(entries),
            seconds=sum(e.seconds for e in entries),
            gpu_hours=sum(e.seconds for e in entries if e.attempts[0].node == "gaming-pc") / 3600,
            kwh=kwh,
            cost=kwh * 0.32,
            currency="EUR",
        ),
        best_trial=best.number,
        best_value=best.value,
        best_params=dict(best.params),
        created_at=NIGHT - timedelta(minutes=12),
        ended_at=NIGHTS[1] + timedelta(hours=7),
        user="ada",
    )
    spec = sweep_spec(trials=len(entries))
    return SweepDetail(sweep=view, spec=spec, trials=[_trial(e) for e in entries], rungs=[500, 1500, 4500])


def _trial(entry: Entry) -> TrialView:
    return TrialView(
        number=entry.number or 0,
        point=entry.number or 0,
        repeat=0,
        run_id=entry.run_id,
        name=entry.name,
        params=dict(entry.params),
        state=TrialState(entry.state),
        run_state=RunState.SUCCEEDED if entry.state == "complete" else RunState.CANCELLED,
        rung=0,
        values={},
        value=entry.value,
        step=entry.step,
        seconds=entry.seconds,
        energy_kwh=entry.energy_kwh,
        cost=entry.cost,
        created_at=NIGHT,
    )


def checkpoint(entry: Entry) -> CheckpointView:
    """The best checkpoint of a trial."""
    found = best_of(entry.curves[METRIC], True)
    assert found is not None
    return CheckpointView(
        run=entry.run_id,
        step=found[0],
        attempt=entry.attempts[-1].number,
        node=entry.attempts[-1].node,
        device=DEVICES[entry.attempts[-1].node],
        at=entry.attempts[-1].ended_at or NIGHT,
        size=129_400_000,
        metrics={METRIC: found[1], "train/loss": found[1] - 0.35},
        uri=f"s3://lab/orch/runs/{entry.run_id}/data/1/{found[0]}-5d1c",
    )


def without_energy(report: Report) -> Report:
    """The same sweep on machines that do not tell what they use."""
    nothing = {"energy_kwh": None, "energy_source": None, "cost": None}
    bare = [
        replace(
            entry,
            energy_kwh=None,
            cost=None,
            attempts=tuple(one.model_copy(update=nothing) for one in entry.attempts),
        )
        for entry in report.entries
    ]
    return replace(report, entries=tuple(bare))
