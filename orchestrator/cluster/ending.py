"""Ends attempts so that they save, then services, then says whether anything is left."""

from __future__ import annotations

import fcntl
import shutil
import signal
from collections.abc import Callable
from typing import Final

from orchestrator.agent.identity import ProcessId
from orchestrator.client import Client
from orchestrator.clock import SYSTEM
from orchestrator.cluster.agents import agents
from orchestrator.cluster.config import StackConfig, temp_dir
from orchestrator.cluster.host import GRACE_S
from orchestrator.cluster.processes import end_sessions, marked_sessions, signal_process
from orchestrator.cluster.starting import Progress
from orchestrator.cluster.state import load_state
from orchestrator.domain.states import RunState
from orchestrator.errors import OrchError, SetupError
from orchestrator.settings import Home

SAY_EVERY_S: Final = 10.0
ELSEWHERE_S: Final = 20.0
"""How long to wait for attempts on other machines once those here have ended."""
FORCED_S: Final = 15.0
"""Between SIGTERM and SIGKILL for an agent that did not end when it was told to."""
SUPERVISOR_S: Final = 15.0
_POLL_S: Final = 0.2
_ACTIVE: Final = (RunState.STARTING, RunState.RUNNING, RunState.STOPPING)


def end_attempts(home: Home, config: StackConfig, progress: Progress, grace_s: float) -> None:
    """Have the attempts of the whole cluster save and stop, as far as they can be reached.

    Agents of this machine that have not ended after `grace_s` are ended by force.
    """
    with Client(config.controller_url, _token(home), timeout_s=5.0) as client:
        told = _tell(client)
        if told:
            progress(f"{told} attempts are saving")
        elif told is None and agents(home):
            progress("the controller does not answer; telling the attempts on this machine themselves")
            _signal_agents(home, signal.SIGTERM)
        _wait(lambda: _still_saving(home), grace_s, progress)
        if told:
            _wait(lambda: _active_elsewhere(client), min(grace_s, ELSEWHERE_S), progress)
    force_agents(home, progress)


def stop_agents(home: Home, progress: Progress, grace_s: float) -> None:
    """Tell this machine's agents themselves to save and end, and wait for them up to `grace_s`."""
    if agents(home):
        progress(f"{len(agents(home))} attempts are saving")
        _signal_agents(home, signal.SIGTERM)
        _wait(lambda: _still_saving(home), grace_s, progress)


def force_agents(home: Home, progress: Progress) -> None:
    """End agents that are still here: their program has one more chance to save."""
    left = agents(home)
    if not left:
        return
    progress(f"ending {len(left)} attempts that did not stop in time")
    _signal_agents(home, signal.SIGTERM)
    _wait(lambda: "waiting for them" if agents(home) else "", FORCED_S, progress)
    _signal_agents(home, signal.SIGKILL)
    _wait(lambda: "waiting for them" if agents(home) else "", FORCED_S, progress)


def stop_node(home: Home, config: StackConfig, progress: Progress, grace_s: float) -> None:
    """Stop the node of a machine that joined: it goes first, so that nothing new is started on it; then its
    attempts have `grace_s` to save."""
    stop_everything(home, config, progress)
    stop_agents(home, progress, grace_s)
    force_agents(home, progress)


def stop_everything(home: Home, config: StackConfig, progress: Progress) -> None:
    """End the supervisor and every service; SetupError where something cannot be ended."""
    progress("stopping services")
    state = load_state(home)
    if state.supervisor is not None:
        signal_process(state.supervisor.id, signal.SIGTERM)
    with home.supervisor_lock.open("a") as lock:
        _take_over(lock.fileno(), state.supervisor.id if state.supervisor else None)
        if state.supervisor is not None:
            supervisor = state.supervisor.id
            _wait(lambda: "waiting for the supervisor" if supervisor.alive() else "", SUPERVISOR_S, progress)
        sessions = {**marked_sessions(config.id), **load_state(home).sessions()}
        left = end_sessions(sessions, GRACE_S)
        home.state_file.unlink(missing_ok=True)
    if left:
        raise SetupError(
            f"these processes cannot be ended: {', '.join(f'{m.pid} ({m.name})' for m in left)}",
            remedy="They wait for the system, usually for a disk. A restart of the machine ends them.",
        )
    shutil.rmtree(temp_dir(config, "").parent, ignore_errors=True)


def _take_over(descriptor: int, supervisor: ProcessId | None) -> None:
    """Hold the supervisor's lock, so that no other one starts services while they are being ended."""
    deadline = SYSTEM.monotonic() + SUPERVISOR_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            SYSTEM.sleep(0.05)
        else:
            return
        if supervisor is not None and SYSTEM.monotonic() > deadline:
            signal_process(supervisor, signal.SIGKILL)
        if SYSTEM.monotonic() > 2 * SUPERVISOR_S + deadline:
            raise SetupError("the supervisor cannot be ended", remedy="End it by hand; see state.json.")


def _still_saving(home: Home) -> str:
    left = len(agents(home))
    return f"{left} attempts are still saving" if left else ""


def _tell(client: Client) -> int | None:
    """How many attempts were told to stop; None where the controller does not answer."""
    try:
        return client.shutdown()
    except OrchError:
        return None


def _active_elsewhere(client: Client) -> str:
    try:
        active = client.runs(states=list(_ACTIVE))
    except OrchError:
        return ""
    places = sorted({run.node or "?" for run in active})
    return f"waiting for {len(active)} attempts on {', '.join(places)}" if active else ""


def _wait(what: Callable[[], str], timeout_s: float, progress: Progress) -> None:
    """Until `what` is empty or the time is over; says it now and then."""
    deadline = SYSTEM.monotonic() + timeout_s
    say_at = SYSTEM.monotonic() + SAY_EVERY_S
    while (text := what()) and SYSTEM.monotonic() < deadline:
        if SYSTEM.monotonic() > say_at:
            progress(text)
            say_at += SAY_EVERY_S
        SYSTEM.sleep(_POLL_S)


def _signal_agents(home: Home, number: signal.Signals) -> None:
    for agent in agents(home):
        signal_process(agent.process, number)


def _token(home: Home) -> str | None:
    try:
        return home.token_file.read_text().strip()
    except FileNotFoundError:
        return None
