"""Sweeps in the real controller, over a cluster on paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.job import AgentJob
from orchestrator.domain.states import RunState
from orchestrator.domain.sweeps import SweepState, TrialState
from orchestrator.domain.trials import standings
from orchestrator.errors import ConflictError
from orchestrator.messages_sweeps import ExtendRequest, SweepDetail, SweepRequest
from orchestrator.spec.sweep import SweepSpec
from orchestrator.store.outbox import CreateRun
from tests.paper import PaperCluster, spans_of

HOUR = 3600.0


def curve(job: AgentJob, step: int) -> float:
    """Falls towards a floor that is lowest at a learning rate of 1e-3."""
    assert job.spec.trainer is not None
    off = abs(math.log10(job.spec.trainer.learning_rate) + 3.0)
    return 1.5 + off + 2.0 / (1.0 + step / 50)


def sweep(name: str = "search", **values: Any) -> SweepSpec:
    base = {
        "trainer": {"max_steps": 300, "eval_interval": 50, "min_lr": 1e-6},
        "placement": [{"pool": "laptop", "cpus": 1}, {"pool": "gpu", "cpus": 1}],
        "migrate": "never",
    }
    space = {"trainer.learning_rate": {"float": [1e-4, 1e-2], "log": True}}
    defaults: dict[str, Any] = {
        "base": base,
        "space": space,
        "sampler": {"kind": "random"},
        "budget": {"trials": 6},
        "parallel": 2,
    }
    return SweepSpec.model_validate({"name": name, **defaults, **values})


def asha(**values: Any) -> SweepSpec:
    pruner = {"kind": "asha", "first_steps": 50, "factor": 2, "pools": ["laptop", "gpu"]}
    return sweep("asha", pruner=pruner, budget={"trials": 8}, **values)


@pytest.fixture
def cluster(tmp_path: Path) -> PaperCluster:
    return PaperCluster(tmp_path, curve)


def submit(cluster: PaperCluster, spec: SweepSpec, key: str = "key") -> str:
    return cluster.controller.sweeps.submit(SweepRequest(spec=spec, key=key, user="ada")).sweep_id


def detail(cluster: PaperCluster, sweep_id: str) -> SweepDetail:
    return cluster.controller.sweep_views.detail(sweep_id)


def finish(cluster: PaperCluster, sweep_id: str, longest: float = 4 * HOUR) -> SweepDetail:
    def over() -> bool:
        with cluster.controller.ledger.read() as ledger:
            ended = ledger.sweeps.get(sweep_id).state.final
            return ended and not ledger.sweeps.open_run_ids(sweep_id)

    cluster.run(longest, until=over)
    found = detail(cluster, sweep_id)
    assert found.sweep.state.final, found.sweep
    return found


def test_every_point_is_one_run_and_the_best_is_told(cluster: PaperCluster) -> None:
    found = finish(cluster, submit(cluster, sweep()))
    assert found.sweep.state == SweepState.FINISHED
    assert [trial.state for trial in found.trials] == [TrialState.COMPLETE] * 6
    assert [trial.name for trial in found.trials] == [f"search-{n}" for n in range(6)]
    best = min(found.trials, key=lambda trial: trial.value or math.inf)
    assert (found.sweep.best_trial, found.sweep.best_value) == (best.number, best.value)
    near = min(found.trials, key=lambda t: abs(math.log10(t.params["trainer.learning_rate"]) + 3))
    assert best.number == near.number
    assert len({span.run_id for span in cluster.spans}) == len(cluster.spans) == 6
    assert found.sweep.use.seconds == pytest.approx(6 * 300, rel=0.1)


def test_no_more_trials_at_a_time_than_were_asked_for(cluster: PaperCluster) -> None:
    sweep_id = submit(cluster, sweep())
    most = 0
    for _ in range(100):
        cluster.step(10)
        open_ = [t for t in detail(cluster, sweep_id).trials if t.state == TrialState.OPEN]
        most = max(most, len(open_))
    assert most == 2


@pytest.mark.parametrize("spec", [sweep(sampler={"kind": "tpe", "startup_trials": 2}), asha()])
def test_a_controller_that_dies_again_and_again_samples_and_promotes_as_one_that_lives(
    tmp_path: Path, spec: SweepSpec
) -> None:
    quiet, broken = PaperCluster(tmp_path / "a", curve), PaperCluster(tmp_path / "b", curve)
    ids = [submit(cluster, spec) for cluster in (quiet, broken)]
    finish(quiet, ids[0])
    for stride in range(400):
        if stride % 4 == 0:
            broken.crash()
        broken.step(10)
        if detail(broken, ids[1]).sweep.state.final:
            break
    results = [
        [(t.number, t.params, t.state, t.values) for t in detail(cluster, sweep_id).trials]
        for cluster, sweep_id in zip((quiet, broken), ids, strict=True)
    ]
    assert [one[:3] for one in results[0]] == [one[:3] for one in results[1]]


def test_rungs_climb_machines_from_their_checkpoints(cluster: PaperCluster) -> None:
    found = finish(cluster, submit(cluster, asha()))
    assert found.rungs == [50, 100, 200, 300]
    assert {trial.state for trial in found.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    complete = [trial for trial in found.trials if trial.state == TrialState.COMPLETE]
    best = min(found.trials, key=lambda t: abs(math.log10(t.params["trainer.learning_rate"]) + 3))
    assert best.number in [trial.number for trial in complete]
    for trial in found.trials:
        spans = list(spans_of(cluster, trial.run_id))
        assert spans[0].node == "laptop"
        assert all(span.node == "gpu" for span in spans[1:])
        assert [span.first for span in spans] == [0, *(span.last for span in spans[:-1])]
        assert [span.last for span in spans] == [*found.rungs][: len(spans)]
    assert sum(span.last - span.first for span in cluster.spans) < 8 * 300 * 0.6


def test_pruned_runs_say_why(cluster: PaperCluster) -> None:
    found = finish(cluster, submit(cluster, asha()))
    pruned = next(trial for trial in found.trials if trial.state == TrialState.PRUNED)
    run = cluster.controller.service.detail(pruned.run_id)
    assert run.run.state == RunState.CANCELLED
    assert run.run.reason == "pruned"
    assert any(event.kind == "pruned" for event in run.events)


def test_a_used_up_duration_ends_it_and_what_runs_saves(cluster: PaperCluster) -> None:
    found = finish(cluster, submit(cluster, sweep(budget={"trials": 100, "duration": "15m"})))
    assert found.sweep.state == SweepState.FINISHED
    assert "0.25 hours" in found.sweep.message
    assert found.sweep.use.seconds <= 15 * 60 + 2 * 2 * 5
    assert {trial.state for trial in found.trials} == {TrialState.COMPLETE, TrialState.CANCELLED}


def test_a_target_ends_it(cluster: PaperCluster) -> None:
    found = finish(cluster, submit(cluster, sweep(budget={"trials": 100, "target": 2.3})))
    assert "target of 2.3 is reached" in found.sweep.message
    assert found.sweep.best_value is not None
    assert found.sweep.best_value <= 2.3
    assert len(found.trials) < 100


def test_trials_that_fail_are_told_and_others_go_on(cluster: PaperCluster) -> None:
    cluster.fails = lambda job: "no such data" if job.spec.name.endswith("-1") else ""
    found = finish(cluster, submit(cluster, sweep()))
    states = [trial.state for trial in found.trials]
    assert states.count(TrialState.FAILED) == 1
    assert found.trials[1].message.startswith("no such data")
    assert found.sweep.state == SweepState.FINISHED


def test_a_sweep_whose_trials_all_fail_is_given_up(cluster: PaperCluster) -> None:
    cluster.fails = lambda job: "no such data"
    found = finish(cluster, submit(cluster, sweep(budget={"trials": 100})))
    assert found.sweep.state == SweepState.FAILED
    assert "no such data" in found.sweep.message
    assert len(found.trials) <= 7


def test_a_metric_that_nobody_logs_is_named(cluster: PaperCluster) -> None:
    found = finish(cluster, submit(cluster, sweep(objective={"metric": "val/accuracy"})))
    assert found.sweep.state == SweepState.FAILED
    assert "it logged no val/accuracy (objective.metric); it logged val/loss" in found.trials[0].message


def test_cancel_ends_its_runs_and_is_final(cluster: PaperCluster) -> None:
    sweep_id = submit(cluster, sweep())
    cluster.run(60)
    cluster.controller.sweeps.cancel(sweep_id)
    found = finish(cluster, sweep_id)
    assert found.sweep.state == SweepState.CANCELLED
    assert {trial.run_state for trial in found.trials} == {RunState.CANCELLED}
    assert {trial.state for trial in found.trials} == {TrialState.CANCELLED}
    with pytest.raises(ConflictError, match="cancelled"):
        cluster.controller.sweeps.extend(sweep_id, ExtendRequest(trials=20))


def test_paused_it_begins_nothing_and_resumed_it_goes_on(cluster: PaperCluster) -> None:
    sweep_id = submit(cluster, sweep())
    cluster.run(60)
    cluster.controller.sweeps.pause(sweep_id)
    cluster.run(HOUR)
    found = detail(cluster, sweep_id)
    assert (found.sweep.state, len(found.trials)) == (SweepState.PAUSED, 2)
    assert all(trial.state == TrialState.COMPLETE for trial in found.trials)
    cluster.controller.sweeps.resume(sweep_id)
    assert len(finish(cluster, sweep_id).trials) == 6


def test_extended_it_goes_on_and_keeps_its_trials(cluster: PaperCluster) -> None:
    sweep_id = submit(cluster, sweep())
    before = finish(cluster, sweep_id)
    cluster.controller.sweeps.extend(sweep_id, ExtendRequest(trials=9))
    after = finish(cluster, sweep_id)
    assert len(after.trials) == 9
    assert after.trials[:6] == before.trials
    with pytest.raises(ConflictError, match="trials 9 already"):
        cluster.controller.sweeps.extend(sweep_id, ExtendRequest(trials=3))


def test_repeats_count_together(cluster: PaperCluster) -> None:
    found = finish(cluster, submit(cluster, sweep(repeat=2, budget={"trials": 3})))
    assert [(trial.point, trial.repeat) for trial in found.trials] == [
        (p, r) for p in range(3) for r in (0, 1)
    ]
    assert found.sweep.use.trials == 3


def test_trials_behind_the_median_are_ended_early(cluster: PaperCluster) -> None:
    pruner = {"kind": "median", "first_steps": 100, "startup_trials": 2}
    found = finish(
        cluster,
        submit(cluster, sweep(pruner=pruner, budget={"trials": 12}, sampler={"seed": 3, "kind": "random"})),
    )
    pruned = [trial for trial in found.trials if trial.state == TrialState.PRUNED]
    complete = [trial for trial in found.trials if trial.state == TrialState.COMPLETE]
    assert pruned
    assert all((trial.step or 0) < 300 for trial in pruned)
    assert min(t.value or 0 for t in pruned) > min(t.value or 9 for t in complete)


def test_the_same_key_is_the_same_sweep(cluster: PaperCluster) -> None:
    assert submit(cluster, sweep()) == submit(cluster, sweep())
    with pytest.raises(ConflictError, match="another spec"):
        submit(cluster, sweep(parallel=1))


def test_mlflow_shows_trials_below_their_sweep(tmp_path: Path) -> None:
    cluster = PaperCluster(tmp_path, curve, mlflow_url="http://127.0.0.1:1")
    found = finish(cluster, submit(cluster, sweep()))
    spool = cluster.controller.spool
    child = [t.task for t in spool.tasks(found.trials[0].run_id) if isinstance(t.task, CreateRun)]
    assert [task.parent for task in child] == [found.sweep.id]
    assert child[0].tags["orch.trial"] == "0"
    own = [t.task for t in spool.tasks(found.sweep.id)]
    assert any(isinstance(task, CreateRun) and task.parent is None for task in own)
    best = spool.points(found.sweep.id, keys=["best/val/loss"])
    assert [point.step for point in best] == sorted(point.step for point in best)
    assert best[-1].value == found.sweep.best_value


def test_a_lost_machine_costs_no_trial(cluster: PaperCluster) -> None:
    sweep_id = submit(cluster, sweep())
    cluster.run(100)
    cluster.lose("laptop")
    cluster.run(60)
    cluster.back("laptop")
    found = finish(cluster, sweep_id)
    assert [trial.state for trial in found.trials] == [TrialState.COMPLETE] * 6


def test_what_the_ledger_ranks_is_what_the_decisions_rank(cluster: PaperCluster) -> None:
    for spec in (sweep(), sweep("repeated", repeat=2, budget={"trials": 4}), asha()):
        found = finish(cluster, submit(cluster, spec, key=spec.name))
        with cluster.controller.ledger.read() as ledger:
            record = ledger.sweeps.get(found.sweep.id)
            first, mean = ledger.sweeps.best(record) or (None, None)
            ranked = standings(ledger.sweeps.trials(record.id), spec.objective, spec.repeat)
            parts = ledger.sweeps.used_by_run(record.id, cluster.clock.now())
            assert first is not None
            assert (first.number, mean) == (ranked[0].trials[0], pytest.approx(ranked[0].value))
            assert ledger.sweeps.used(record.id, cluster.clock.now()).seconds == pytest.approx(
                sum(part.seconds for part in parts.values())
            )
            assert ledger.sweeps.points(record.id) == 1 + max(trial.point for trial in found.trials)
