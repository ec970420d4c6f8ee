"""Attempts of one run, interleaved operation by operation with crashes and lost answers, keep the rules that
`attempts.py` names: 20,000 steps found by Hypothesis, and by a seeded die as many as ORCH_SOAK_STEPS says
(`make soak`: ten million).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from orchestrator.errors import FencedError
from orchestrator.store.protocol import CHUNK, Source
from orchestrator.store.restore import _candidates
from tests.faults.attempts import CHOICES, WEATHER, Sources, World, small_is_large, walk
from tests.unit.store.memory_store import MemoryStore

LEAST = 20_000
SOAK_STEPS = int(os.environ.get("ORCH_SOAK_STEPS", "20000"))
EPISODE = 400
"""Steps of one world of the die's."""

numbers, choices = st.integers(0, 1), st.sampled_from(range(CHOICES))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Each lost answer would be logged."""
    log = logging.getLogger("orchestrator.store")
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(logging.NOTSET)


@pytest.fixture
def sources() -> Iterator[Sources]:
    made = Sources()
    with small_is_large():
        yield made
    made.close()


class Attempts(RuleBasedStateMachine):
    """Each rule is one step, except those that are named for several."""

    sources: ClassVar[Sources]
    rules = steps = commits = restored = 0
    """How many there were in all."""

    @initialize(weather=st.sampled_from(sorted(WEATHER)))
    def begin(self, weather: str) -> None:
        self.world = World(self.sources, weather)

    @rule(number=numbers, choice=choices)
    def step(self, number: int, choice: int) -> None:
        self.world.step(number, choice)
        Attempts.rules += 1

    @rule(number=numbers, choice=choices)
    def step_too(self, number: int, choice: int) -> None:
        """As often as all other rules together."""
        self.step(number, choice)

    @rule(number=numbers, choice=choices)
    def go_wrong_at_the_record(self, number: int, choice: int) -> None:
        self.world.go_wrong_at_the_record(number, choice)
        Attempts.rules += 1

    @rule(number=numbers)
    def finish(self, number: int) -> None:
        self.world.finish(number)
        Attempts.rules += 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.end()
        Attempts.steps += self.world.steps
        Attempts.commits += len(self.world.acknowledged)
        Attempts.restored += self.world.restored


@pytest.mark.timeout(300)
def test_whatever_hypothesis_finds(sources: Sources) -> None:
    Attempts.sources = sources
    Attempts.rules = Attempts.steps = Attempts.commits = Attempts.restored = 0
    run_state_machine_as_test(
        Attempts,
        settings=settings(
            max_examples=270,
            stateful_step_count=100,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    told = f"{Attempts.rules} rules, {Attempts.steps} steps, {Attempts.commits} commits"
    print(f"\n{told}, {Attempts.restored} restores")
    assert min(Attempts.rules, Attempts.steps) >= LEAST, told
    assert Attempts.commits > LEAST // 100, told


def _walk(seeds: range) -> tuple[int, int, int]:
    """Steps, commits and restores of some worlds."""
    logging.getLogger("orchestrator.store").setLevel(logging.ERROR)
    sources = Sources()
    steps = commits = restored = 0
    try:
        for seed in seeds:
            try:
                with small_is_large():
                    world = walk(seed, EPISODE, sources)
            except AssertionError as error:
                raise AssertionError(f"walk({seed}, {EPISODE}, …): {error}") from error
            steps += world.steps
            commits += len(world.acknowledged)
            restored += world.restored
    finally:
        sources.close()
    return steps, commits, restored


@pytest.mark.timeout(14_400)
def test_whatever_a_die_finds() -> None:
    began = time.monotonic()
    worlds = -(-SOAK_STEPS // EPISODE)
    batches = [range(first, min(first + 25, worlds)) for first in range(0, worlds, 25)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        told = list(pool.map(_walk, batches))
    steps, commits, restored = (sum(column) for column in zip(*told, strict=True))
    seconds = time.monotonic() - began
    print(f"\n{steps} steps, {commits} commits, {restored} restores, {steps / seconds:.0f} steps/s")
    assert steps >= SOAK_STEPS
    assert commits > steps // 100


# ---------------------------------------------------------------------- that it would notice


def _overwrite(store: MemoryStore, key: str, source: Source, *, create_only: bool = False) -> bool:
    data = source if isinstance(source, bytes) else b"".join(iter(lambda: source.read(CHUNK), b""))  # type: ignore[union-attr]
    store._hook("create" if create_only else "put", key, lambda: store.objects.__setitem__(key, data))
    return True


@pytest.mark.parametrize(
    ("what", "instead", "told"),
    [
        (f"{MemoryStore.__module__}.MemoryStore.put", _overwrite, "a record was replaced"),
        ("orchestrator.store.runlog.Claim.history", lambda claim: claim.log.history(), "after a fence"),
        ("orchestrator.store.checkpoints.choose", lambda live, *policy: live[-1:], "newest checkpoint was"),
        ("orchestrator.store.retention.attempt_of", lambda *data: 1, "a live file is not there"),
        ("orchestrator.store.checkpoints.StoreUnavailableError", FencedError, "a live file is not there"),
        ("orchestrator.store.runlog.History.find", lambda history, step: None, "two checkpoints of one step"),
        (
            "orchestrator.store.restore._candidates",
            lambda history, *asked: history.live or _candidates(history, *asked),
            "not the newest",
        ),
    ],
)
def test_a_broken_rule_is_noticed(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, what: str, instead: object, told: str
) -> None:
    monkeypatch.setattr(what, instead)
    with pytest.raises(AssertionError, match=told):
        all(walk(seed, EPISODE, sources) for seed in range(300))
