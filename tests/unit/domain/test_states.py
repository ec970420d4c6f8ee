from orchestrator.domain.states import CONSEQUENCES, Reason, RunState, Then


def test_every_reason_has_a_consequence() -> None:
    assert set(CONSEQUENCES) == set(Reason)


def test_only_unexplained_ends_cost_a_retry() -> None:
    free = {Reason.MOVED, Reason.SHUTDOWN, Reason.NODE_LOST, Reason.ACTOR_LOST, Reason.FENCED}
    free |= {Reason.DRAINED, Reason.OWNER}
    assert {reason for reason in free if CONSEQUENCES[reason].then == Then.RETRY} == set()
    assert CONSEQUENCES[Reason.PROGRAM_KILLED].then == Then.RETRY


def test_user_errors_are_not_tried_again() -> None:
    assert CONSEQUENCES[Reason.USER_ERROR].then == Then.FAIL


def test_three_states_are_final() -> None:
    assert {s for s in RunState if s.final} == {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}
