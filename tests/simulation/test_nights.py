"""An overnight sweep under a simulated clock: the real controller over a cluster on paper, for two nights.

In each night the controller is killed and begins again, in the first a machine is lost, in the second one is
asleep for a while. One of the nights is one in which clocks change.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from orchestrator.agent.job import AgentJob
from orchestrator.domain.sweeps import SweepState, TrialState
from orchestrator.messages_schedules import ScheduleRequest
from orchestrator.messages_sweeps import SweepDetail
from orchestrator.spec.sweep import SweepSpec
from tests.paper import PaperCluster

PARIS, LORD_HOWE = "Europe/Paris", "Australia/Lord_Howe"
NIGHTS = [
    (PARIS, date(2027, 3, 27)),  # the second night has no 02:30
    (PARIS, date(2027, 10, 30)),  # and here it has it twice
    (LORD_HOWE, date(2027, 4, 3)),  # half an hour twice
    (LORD_HOWE, date(2027, 10, 2)),  # half an hour never
]
OPENS, CLOSES = time(22), time(7)
STEPS, PACE_S = 1500, 4.0
"""100 minutes a trial: about ten fit into a night on two machines."""


def curve(job: AgentJob, step: int) -> float:
    assert job.spec.trainer is not None
    return 1.5 + abs(math.log10(job.spec.trainer.learning_rate) + 3.0) + 2.0 / (1.0 + step / 200)


def sweep(**values: Any) -> SweepSpec:
    base = {
        "trainer": {"max_steps": STEPS, "eval_interval": 50, "min_lr": 1e-6},
        "placement": [{"pool": "laptop", "cpus": 2}, {"pool": "gpu", "cpus": 2}],
        "migrate": "never",
        "away": "20m",
    }
    defaults: dict[str, Any] = {
        "base": base,
        "space": {"trainer.learning_rate": {"float": [1e-4, 1e-2], "log": True}},
        "sampler": {"kind": "tpe", "startup_trials": 5},
        "budget": {"trials": 14},
        "parallel": 2,
    }
    return SweepSpec.model_validate({"name": "night", **defaults, **values})


class Nights:
    """Two nights from the evening before the first, with what goes wrong in them."""

    def __init__(self, home: Path, zone: str, first: date, seed: int) -> None:
        self.zone, self.random = ZoneInfo(zone), Random(seed)
        self.first = first - timedelta(days=1)  # clocks change in the second night
        begin = datetime.combine(self.first, time(20), self.zone)
        self.cluster = PaperCluster(
            home, curve, pace=lambda job: PACE_S, every=50, begin=begin.astimezone(UTC)
        )

    def at(self, day: int, clock: time) -> float:
        """Unix time of a local time of the n-th day."""
        local = datetime.combine(self.first + timedelta(days=day), clock, self.zone)
        return local.timestamp()

    def windows(self) -> list[tuple[float, float]]:
        """[opens, closes) of the nights, in Unix time."""
        return [(self.at(night, OPENS), self.at(night + 1, CLOSES)) for night in range(3)]

    def until(self, instant: float) -> None:
        """Let time pass, in long strides where nothing runs."""
        cluster = self.cluster
        while (left := instant - cluster.clock.now().timestamp()) > 0:
            cluster.step(min(left, 30.0 if cluster.executing() else 240.0))

    def night(self, number: int) -> None:
        """From the afternoon to the morning after."""
        begin, end = self.windows()[number]
        third = (end - begin) / 3
        self.until(begin + self.random.uniform(120, third))
        self.cluster.crash()
        self.until(begin + third + self.random.uniform(0, third))
        self._trouble(number, sleeps_s=self.random.uniform(300, 1100))
        self.until(end + 60)
        assert not self.cluster.executing()

    def _trouble(self, number: int, sleeps_s: float) -> None:
        if number == 0:
            self.cluster.lose("gpu")
            self.cluster.run(400, 30)
            self.cluster.back("gpu")
            return
        self.cluster.silent.add("laptop")
        self.cluster.run(sleeps_s, 30)
        self.cluster.silent.discard("laptop")

    def check(self) -> None:
        """No program ran outside the hours."""
        for span in self.cluster.spans:
            assert span.end is not None
            inside = [end for begin, end in self.windows() if begin <= span.begin < end]
            assert inside, f"{span} began outside the window"
            assert span.end <= inside[0], f"{span} went on after the window"


@pytest.fixture(params=NIGHTS, ids=lambda night: f"{night[0].rpartition('/')[2]}-{night[1]}")
def nights(request: pytest.FixtureRequest, tmp_path: Path) -> Nights:
    zone, day = request.param
    return Nights(tmp_path, zone, day, seed=day.toordinal())


def scheduled(nights: Nights, spec: SweepSpec) -> None:
    request = ScheduleRequest(
        key="nightly", name="nightly", sweep=spec, cron="0 22 * * *", until="07:00", tz=str(nights.zone)
    )
    nights.cluster.controller.schedules.add(request)
    nights.cluster.turns.append(lambda: nights.cluster.controller.firing.look())


def the_sweep(nights: Nights) -> SweepDetail:
    (view,) = nights.cluster.controller.sweep_views.sweeps([], 10)
    return nights.cluster.controller.sweep_views.detail(view.id)


def test_two_nights_with_everything_that_goes_wrong(nights: Nights) -> None:
    scheduled(nights, sweep())
    nights.night(0)
    half = the_sweep(nights)
    assert half.sweep.state == SweepState.RUNNING
    assert 4 <= sum(trial.state == TrialState.COMPLETE for trial in half.trials) <= 13
    nights.until(nights.at(1, time(21)))
    assert _steps(the_sweep(nights)) == _steps(half), "nothing happens in the daytime"
    nights.night(1)
    found = the_sweep(nights)
    nights.check()
    assert [trial.state for trial in found.trials[:14]] == [TrialState.COMPLETE] * len(found.trials)
    assert found.sweep.state == SweepState.FINISHED
    fires = nights.cluster.controller.schedules.fires("nightly", 10)
    assert [one.state for one in reversed(fires)] == ["created", "skipped"]
    _every_trial_ran_once(nights, found)


def _steps(detail: SweepDetail) -> list[tuple[int, TrialState, int | None]]:
    return [(trial.number, trial.state, trial.step) for trial in detail.trials]


def _every_trial_ran_once(nights: Nights, found: SweepDetail) -> None:
    """Each step of each trial was kept once: attempts go on from what was saved, none from zero again."""
    for trial in found.trials:
        attempts = [a for a in nights.cluster.agents.values() if a.job.run_id == trial.run_id]
        assert [a.first for a in attempts] == [0, *(a.saved for a in attempts[:-1])]
        assert attempts[-1].step == STEPS
    assert len({trial.run_id for trial in found.trials}) == len(found.trials) == 14
    assert len({str(trial.params) for trial in found.trials}) == 14


@pytest.mark.parametrize("nights", NIGHTS[:1], indirect=True, ids=["Paris"])
def test_a_budget_of_hours_holds_over_nights_and_crashes(nights: Nights) -> None:
    scheduled(nights, sweep(budget={"trials": 100, "duration": "20h"}))
    nights.night(0)
    nights.night(1)
    found = the_sweep(nights)
    nights.check()
    assert found.sweep.state == SweepState.FINISHED
    assert "20 hours" in found.sweep.message
    ran = sum(span.end - span.begin for span in nights.cluster.spans if span.end is not None)
    # It ends within a round, 30 s here, of each of two runs; what a lost machine did at last counts in full.
    assert 19.5 * 3600 <= ran <= 20 * 3600 + 2 * 2 * 30
