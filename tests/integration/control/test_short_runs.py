"""Programs that are over before anything was heard of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.messages_agent import Outcome
from tests.integration.control.test_sight import Setting


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Setting]:
    with closing(Setting(tmp_path)) as setting:
        yield setting


def test_they_have_begun_when_they_ended(it: Setting) -> None:
    run_id = it.submit()
    it.pass_(10)
    outcome = Outcome(reason=Reason.COMPLETED, message="m")
    it.beat(run_id, phase=Phase.ENDED, outcome=outcome, outcome_age_s=2.0, timings={"spawn": 0.1})
    run, attempt = it.run(run_id), it.attempt(run_id)
    assert run.state is RunState.SUCCEEDED
    assert run.ended_at is not None
    assert run.started_at == attempt.started_at == it.clock.now() - timedelta(seconds=2)
    assert run.started_at <= run.ended_at


def test_a_program_that_could_not_be_started_has_not_begun(it: Setting) -> None:
    run_id = it.submit(retries=0)
    outcome = Outcome(reason=Reason.NOT_STARTED, message="m")
    it.beat(run_id, phase=Phase.ENDED, outcome=outcome, timings={"claim": 0.1})
    assert it.run(run_id).started_at is None
    assert it.attempt(run_id).started_at is None


def test_what_was_heard_running_keeps_its_start(it: Setting) -> None:
    run_id = it.submit()
    it.beat(run_id)
    began = it.attempt(run_id).started_at
    it.pass_(10)
    outcome = Outcome(reason=Reason.COMPLETED, message="m")
    it.beat(run_id, phase=Phase.ENDED, outcome=outcome, timings={"spawn": 0.1})
    assert it.run(run_id).started_at == it.attempt(run_id).started_at == began
