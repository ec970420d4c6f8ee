"""What is remembered of speeds, and what is told from it."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.estimate import Paces, Progress, expected_end, measured, shape
from orchestrator.spec.models import CommandProgram, RunSpec, Variant
from tests.unit.records import NOW, attempt, run, spec
from trainer.config import TrainerConfig

CPU, GPU = Variant(pool="laptop"), Variant(pool="gpu", gpus=1, trainer={"dtype": "bfloat16"})


def gpt(**settings: object) -> RunSpec:
    return RunSpec(name="x", trainer=TrainerConfig.model_validate(settings), placement=[GPU, CPU])


def test_the_shape_is_what_decides_the_speed() -> None:
    same = shape(gpt(), CPU)
    assert shape(gpt(seed=5, max_steps=9, learning_rate=0.5, warmup_steps=1), CPU) == same
    others = [gpt(n_layer=5), gpt(batch_size=13), gpt(block_size=65), gpt(dtype="bfloat16")]
    assert len({same, shape(gpt(), GPU), *(shape(other, CPU) for other in others)}) == 6
    assert shape(gpt(), CPU.model_copy(update={"cpus": 2})) != same
    a, b = (RunSpec(name="x", command=CommandProgram(argv=[name])) for name in "ab")
    assert shape(a, CPU) != shape(b, CPU) == shape(b, CPU)


def test_a_measurement_leaves_the_start_out() -> None:
    one = attempt(
        first_step=100, last_step=300, ended_at=NOW + timedelta(seconds=60), timings={"first_step": 20.0}
    )
    assert measured(one) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "values",
    [
        {"first_step": None},
        {"last_step": None},
        {"started_at": None},
        {"ended_at": None},
        {"last_step": 109},
        {"ended_at": NOW + timedelta(seconds=4)},
    ],
)
def test_too_little_is_no_measurement(values: dict[str, object]) -> None:
    known = {"first_step": 100, "last_step": 300, "ended_at": NOW + timedelta(seconds=60)}
    assert measured(attempt(**{**known, **values})) is None


def test_what_is_not_known_is_not_guessed() -> None:
    paces = Paces()
    assert paces.seconds_per_step("a", "cpu") is None
    paces.learn("a", "cpu", 1.0)
    assert paces.seconds_per_step("a", "gpu") is None
    assert paces.seconds_per_step("b", "cpu") is None
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        paces.learn("a", "cpu", nonsense)
    paces.learn("a", "", 5.0)
    assert paces.seconds_per_step("a", "cpu") == 1.0


def test_devices_are_compared_on_other_shapes() -> None:
    paces = Paces()
    paces.learn("a", "cpu", 1.0)
    paces.learn("a", "gpu", 0.1)
    paces.learn("b", "cpu", 4.0)
    assert paces.seconds_per_step("b", "gpu") == pytest.approx(0.4)


@given(values=st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_an_estimate_lies_between_what_was_measured(values: list[float]) -> None:
    paces = Paces()
    for value in values:
        paces.learn("a", "cpu", value)
    known = paces.seconds_per_step("a", "cpu")
    assert known is not None
    assert min(values) * (1 - 1e-9) <= known <= max(values) * (1 + 1e-9)


@given(pairs=st.lists(st.tuples(st.integers(0, 30), st.sampled_from("xyz")), max_size=100))
def test_it_stays_small_and_forgets_what_is_oldest(pairs: list[tuple[int, str]]) -> None:
    paces, last = Paces(most=10), dict.fromkeys(pairs)
    for number, device in pairs:
        paces.learn(f"s{number}", device, 1.0)
        last[number, device] = last.pop((number, device))
    assert len(paces) == min(10, len(last))
    for number, device in list(last)[-10:]:
        assert paces.seconds_per_step(f"s{number}", device) == 1.0


def test_the_end_is_the_last_step_or_a_limit() -> None:
    one, now = attempt(), NOW + timedelta(seconds=100)
    limited, free = run(spec=spec(max_duration=300)), run()
    assert expected_end(free, one, None, now) is None
    assert expected_end(limited, one, None, now) == NOW + timedelta(seconds=300)
    assert expected_end(limited, one, Progress(10, 20, 5.0), now) == now + timedelta(seconds=50)
    assert expected_end(limited, one, Progress(10, 20, 50.0), now) == NOW + timedelta(seconds=300)
    assert expected_end(free, one, Progress(30, 20, 50.0), now) == now
