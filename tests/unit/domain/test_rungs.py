"""Successive halving: who goes on is among the best, nobody waits for ever or is overtaken by a worse one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.rungs import Promotion, Verdict, bracket_of, decide, pool_at, rungs
from orchestrator.domain.sweeps import TrialRecord, TrialState
from orchestrator.spec import SweepSpec
from orchestrator.spec.sweep import Pruner
from tests.unit.sweeps import sweep, trial

STEPS = 2700
ASHA = {"kind": "asha", "first_steps": 100}


def waiting(number: int, value: float, rung: int = 0, **values: object) -> TrialRecord:
    """A trial that waits at a rung, and had the same value at all rungs before."""
    return trial(number, TrialState.RUNG, rung=rung, values=dict.fromkeys(range(rung + 1), value), **values)


def verdict(trials: list[TrialRecord], more: bool = False, slots: int = 99, **pruner: object) -> Verdict:
    return decide(trials, sweep(pruner={**ASHA, **pruner}), STEPS, more, slots)


# ------------------------------------------------------------------ the ladder


@pytest.mark.parametrize(
    ("first", "factor", "most", "expected"),
    [
        (100, 3, 2700, (100, 300, 900, 2700)),
        (100, 3, 2701, (100, 300, 900, 2700, 2701)),
        (250, 2, 2000, (250, 500, 1000, 2000)),
        (1999, 4, 2000, (1999, 2000)),
    ],
)
def test_rungs_are_powers_and_the_last_is_the_end(
    first: int, factor: int, most: int, expected: tuple[int, ...]
) -> None:
    for kind in ("asha", "hyperband"):
        assert rungs(Pruner(kind=kind, first_steps=first, factor=factor), most) == expected


@pytest.mark.parametrize("kind", ["none", "median"])
def test_without_rungs_there_is_only_the_end(kind: str) -> None:
    assert rungs(Pruner.model_validate({"kind": kind, "first_steps": 5}), 100) == (100,)


def test_the_last_pool_serves_all_later_rungs() -> None:
    pruner = Pruner(kind="asha", first_steps=1, pools=["laptop", "gpu"])
    assert [pool_at(pruner, rung) for rung in range(4)] == ["laptop", "gpu", "gpu", "gpu"]
    assert pool_at(Pruner(kind="asha", first_steps=1), 0) is None


def test_brackets_get_their_shares_over_every_run_of_numbers() -> None:
    """Shares of Hyperband's table for R = 27, eta = 3: 27, 12 (for 13.5), 6, 4 of 49."""
    pruner = Pruner(kind="hyperband", first_steps=100)
    exact = [27, 9 * 4 / 3, 3 * 4 / 2, 4]
    for begin in (0, 17, 1000):
        found = Counter(bracket_of(number, pruner, STEPS) for number in range(begin, begin + 98))
        for bracket, share in enumerate(exact):
            assert found[bracket] == pytest.approx(98 * share / sum(exact), abs=2.5)
    assert bracket_of(0, pruner, STEPS) == 0
    assert {bracket_of(number, Pruner(kind="asha", first_steps=1), STEPS) for number in range(50)} == {0}


# ------------------------------------------------------------------ who goes on


def test_one_of_three_goes_on_as_soon_as_it_is_clear() -> None:
    trials = [waiting(0, 2.0), waiting(1, 1.0)]
    assert verdict(trials, more=True) == Verdict()
    trials += [waiting(2, 3.0)]
    assert verdict(trials, more=True) == Verdict((Promotion(1, 1),))


def test_nobody_waits_for_those_that_are_slow() -> None:
    trials = [waiting(0, 2.0), waiting(1, 1.0), waiting(2, 3.0), *(trial(n) for n in range(3, 9))]
    assert verdict(trials) == Verdict((Promotion(1, 1),))


def test_those_that_have_gone_on_still_count() -> None:
    gone = trial(0, TrialState.OPEN, rung=1, values={0: 1.0})
    trials = [gone, *(waiting(n, 1.0 + n) for n in range(1, 6))]
    assert verdict(trials, more=True) == Verdict((Promotion(1, 1),))
    assert verdict(trials[:5], more=True) == Verdict()


def test_at_the_end_the_best_goes_on_and_the_others_are_pruned() -> None:
    assert verdict([waiting(0, 2.0), waiting(1, 1.0)]) == Verdict((Promotion(1, 1),), (0,))
    assert verdict([waiting(0, 2.0)]) == Verdict((Promotion(0, 1),))


def test_nothing_is_pruned_while_somebody_may_still_come() -> None:
    below = waiting(0, 5.0)
    above = [waiting(n, float(n), rung=1) for n in (1, 2)]
    assert verdict([below, *above]) == Verdict((Promotion(1, 2),), (0, 2)), "nobody comes up from rung 0"
    best = waiting(0, 0.5)
    assert verdict([best, *above], slots=0) == Verdict(), "it waits for a slot to come up"
    assert verdict([trial(0), *above]) == Verdict()
    assert verdict(above, more=True) == Verdict()


def test_slots_go_to_those_that_are_furthest_then_to_the_best() -> None:
    trials = [
        *(waiting(n, float(n)) for n in range(6)),
        *(waiting(n, 50.0 + n, rung=1) for n in range(6, 9)),
    ]
    assert verdict(trials, more=True, slots=2).promote == (Promotion(6, 2), Promotion(0, 1))
    assert verdict(trials, more=True, slots=0) == Verdict()


def test_who_has_no_slot_waits_and_is_not_pruned() -> None:
    assert verdict([waiting(n, float(n)) for n in range(6)], slots=1) == Verdict(
        (Promotion(0, 1),), (2, 3, 4, 5)
    )


def test_ties_go_to_the_lower_number_whatever_the_order_of_the_list() -> None:
    trials = [waiting(n, 1.0) for n in (4, 2, 7)]
    assert verdict(trials) == verdict(trials[::-1]) == Verdict((Promotion(2, 1),), (4, 7))


def test_large_is_good_where_it_is() -> None:
    spec = sweep(pruner=ASHA, objective={"direction": "maximize"})
    found = decide([waiting(0, 2.0), waiting(1, 1.0)], spec, STEPS, False, 9)
    assert found == Verdict((Promotion(0, 1),), (1,))


@pytest.mark.parametrize("state", [TrialState.FAILED, TrialState.CANCELLED])
def test_failed_and_cancelled_trials_do_not_count(state: TrialState) -> None:
    trials = [replace(waiting(0, 0.0), state=state), waiting(1, 1.0), waiting(2, 2.0)]
    assert verdict(trials, more=True) == Verdict()
    assert verdict(trials) == Verdict((Promotion(1, 1),), (2,))


def test_a_trial_that_ended_by_itself_counts_at_later_rungs_with_its_end() -> None:
    early = trial(0, TrialState.COMPLETE, value=0.5)
    trials = [early, *(waiting(n, float(n)) for n in (1, 2, 3, 4, 5))]
    assert verdict(trials, more=True).promote == (Promotion(1, 1),)
    assert verdict(trials[:4], more=True).promote == ()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_worst(value: float) -> None:
    trials = [waiting(0, value), trial(1, TrialState.RUNG), waiting(2, 1e9)]
    assert verdict(trials) == Verdict((Promotion(2, 1),), (0, 1))


def test_brackets_are_races_of_their_own() -> None:
    spec = sweep(pruner={**ASHA, "kind": "hyperband"})
    trials = [
        *(waiting(n, float(n)) for n in range(3)),
        *(replace(trial(n, TrialState.RUNG, rung=1, values={1: n - 9.0}), bracket=1) for n in (3, 4)),
    ]
    assert decide(trials, spec, STEPS, True, 9) == Verdict((Promotion(0, 1),))
    assert decide(trials, spec, STEPS, False, 9) == Verdict((Promotion(3, 2), Promotion(0, 1)), (1, 2, 4))


# ------------------------------------------------------------------ whole sweeps


def race(
    spec: SweepSpec, values: list[float], seed: int, slots: int
) -> Iterator[tuple[list[TrialRecord], Verdict, bool]]:
    """A sweep of as many trials as there are values, on `slots` machines, until all have ended.

    Trials reach their rungs in a random order; now and then one fails. Yields the trials before each
    verdict, the verdict, and whether more come.
    """
    random = Random(seed)
    last = len(rungs(spec.pruner, STEPS)) - 1
    trials: list[TrialRecord] = []
    for _ in range(40 * len(values)):
        more = len(trials) < len(values)
        free = slots - sum(one.state is TrialState.OPEN for one in trials)
        found = decide(trials, spec, STEPS, more, free)
        yield list(trials), found, more
        for promotion in found.promote:
            trials[promotion.trial_number] = replace(
                trials[promotion.trial_number], state=TrialState.OPEN, rung=promotion.rung
            )
        for number in found.prune:
            trials[number] = replace(trials[number], state=TrialState.PRUNED)
        free -= len(found.promote)
        while free > 0 and len(trials) < len(values):
            bracket = bracket_of(len(trials), spec.pruner, STEPS)
            trials.append(trial(len(trials), bracket=bracket, rung=bracket))
            free -= 1
        running = [one for one in trials if one.state is TrialState.OPEN]
        if not running:
            if not any(one.state is TrialState.RUNG for one in trials) and len(trials) == len(values):
                yield list(trials), Verdict(), False
                return
            continue
        one = random.choice(running)
        value = values[one.number] + random.choice([0.0, 0.0, 0.3, -0.3])
        if random.random() < 0.05:
            new = replace(one, state=TrialState.FAILED)
        elif one.rung == last:
            new = replace(one, state=TrialState.COMPLETE, value=value)
        else:
            new = replace(one, state=TrialState.RUNG, values={**one.values, one.rung: value})
        trials[one.number] = new
    raise AssertionError(f"not over: {Counter(one.state for one in trials)}")


RACES = given(
    kind=st.sampled_from(["asha", "hyperband"]),
    factor=st.integers(2, 4),
    values=st.lists(st.integers(0, 20).map(float), min_size=1, max_size=30),
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 6),
    direction=st.sampled_from(["minimize", "maximize"]),
)


@RACES
@settings(max_examples=150, deadline=None)
def test_in_every_race(
    kind: str, factor: int, values: list[float], seed: int, slots: int, direction: str
) -> None:
    """All trials end; who goes on is among the best; nobody is pruned before somebody who is worse."""
    spec = sweep(
        pruner={"kind": kind, "first_steps": 100, "factor": factor}, objective={"direction": direction}
    )
    sign = 1 if direction == "minimize" else -1
    ended: list[TrialRecord] = []
    for trials, found, more in race(spec, values, seed, slots):
        ended = trials
        assert decide(trials[::-1], spec, STEPS, more, 99).prune == found.prune
        promoted = {promotion.trial_number for promotion in found.promote}
        assert promoted.isdisjoint(found.prune)
        for number in promoted | set(found.prune):
            one = trials[number]
            assert one.state is TrialState.RUNG
            rivals = [
                other
                for other in trials
                if other.bracket == one.bracket
                and one.rung in other.values
                and other.state not in (TrialState.FAILED, TrialState.CANCELLED)
            ]
            rank = {other.number: (sign * other.values[one.rung], other.number) for other in rivals}
            better = [other for other in rank if rank[other] < rank[number]]
            if number in promoted:
                closed = not more and not any(
                    other.bracket == one.bracket
                    and (
                        (other.state is TrialState.OPEN and other.rung <= one.rung)
                        or (other.state is TrialState.RUNG and other.rung < one.rung)
                    )
                    for other in trials
                    if other.number not in found.prune
                )
                assert len(better) < max(len(rivals) // factor, 1 if closed else 0)
            else:
                assert not more
                worse = {other for other in rank if rank[other] > rank[number]}
                assert not promoted & worse
                waiting_on = {other for other in worse if trials[other].state is TrialState.RUNG}
                assert {other for other in waiting_on if trials[other].rung == one.rung} <= set(found.prune)
    assert all(one.state.final for one in ended)
    if not any(one.state is TrialState.FAILED for one in ended):
        assert any(one.state is TrialState.COMPLETE for one in ended), "a winner"


@RACES
@settings(max_examples=50, deadline=None)
def test_a_verdict_that_was_carried_out_is_not_given_again(
    kind: str, factor: int, values: list[float], seed: int, slots: int, direction: str
) -> None:
    spec = sweep(
        pruner={"kind": kind, "first_steps": 100, "factor": factor}, objective={"direction": direction}
    )
    for trials, _, more in race(spec, values, seed, slots):
        found = decide(trials, spec, STEPS, more, 99)
        assert decide(trials, spec, STEPS, more, 99) == found
        after = {one.number: one for one in trials}
        for promotion in found.promote:
            after[promotion.trial_number] = replace(
                after[promotion.trial_number], state=TrialState.OPEN, rung=promotion.rung
            )
        for number in found.prune:
            after[number] = replace(after[number], state=TrialState.PRUNED)
        again = decide(list(after.values()), spec, STEPS, more, 99)
        assert again == Verdict()


def test_most_steps_go_to_the_best_with_a_quarter_of_the_work() -> None:
    """81 trials whose order never changes: the winner is the best, for a quarter of what all would cost."""
    random = Random(5)
    values = [float(value) for value in random.sample(range(1000), 81)]
    spec = sweep(pruner=ASHA)
    at = rungs(spec.pruner, STEPS)
    trials = [trial(number) for number in range(81)]
    steps = 0
    while running := [one for one in trials if one.state is TrialState.OPEN]:
        for one in running:
            steps += at[one.rung] - (at[one.rung - 1] if one.rung else 0)
            value = values[one.number]
            state = TrialState.COMPLETE if one.rung == 3 else TrialState.RUNG
            trials[one.number] = replace(
                one,
                state=state,
                value=value if one.rung == 3 else None,
                values={**one.values, one.rung: value},
            )
        found = decide(trials, spec, STEPS, False, 81)
        for promotion in found.promote:
            trials[promotion.trial_number] = replace(
                trials[promotion.trial_number], state=TrialState.OPEN, rung=promotion.rung
            )
        for number in found.prune:
            trials[number] = replace(trials[number], state=TrialState.PRUNED)
    complete = [one.number for one in trials if one.state is TrialState.COMPLETE]
    assert len(complete) == 3
    assert values.index(min(values)) in complete
    assert steps == 81 * 100 + 27 * 200 + 9 * 600 + 3 * 1800
    assert steps < 0.12 * 81 * STEPS
