"""One attempt on its node: claim, restore, run the program, follow it, end.

The main thread decides; it looks at the state of the other parts several times a second and whenever one of
them says that something has changed. Whatever can take long or fail by itself (the store, the controller,
artifacts, the program) lives in a thread or process of its own, so that nothing holds up an order to stop,
and nothing holds up the program.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.agent.artifacts import Artifacts
from orchestrator.agent.closing import Closing, Patience
from orchestrator.agent.compiled import SharedSteps, cache_root
from orchestrator.agent.cores import CoreRegister
from orchestrator.agent.disk import DiskWatch
from orchestrator.agent.energy import watch_attempt
from orchestrator.agent.fence import FenceWatch
from orchestrator.agent.identity import boot_id, cpu_name, gpu_name, oom_kills
from orchestrator.agent.job import AgentJob
from orchestrator.agent.launch import LaunchNote
from orchestrator.agent.link import Link
from orchestrator.agent.opening import Opened, Opening, Telling
from orchestrator.agent.output import OutputLog
from orchestrator.agent.program import Program, build_command
from orchestrator.agent.rank import Crew, Discarding
from orchestrator.agent.reporter import Reporter
from orchestrator.agent.saver import Saver
from orchestrator.agent.triggers import GRACE_S, Triggers
from orchestrator.agent.verdict import Ending, Stop, judge, judge_opening
from orchestrator.agent.waking import Waking
from orchestrator.agent.workdir import WorkDir, prune
from orchestrator.clock import SYSTEM, Clock
from orchestrator.domain.energy import Energy
from orchestrator.domain.limits import describe
from orchestrator.domain.states import ENDING, Phase, Reason
from orchestrator.errors import StoreFullError
from orchestrator.messages_agent import Beat, EnergyNote, Outcome
from orchestrator.store.cache import NO_CACHE

log = logging.getLogger(__name__)

POLL_S = 0.2
POLL_AT_START_S = 0.02
_START_S = 10.0
"""How long the program is watched closely after its start."""
_DECISIVE = ENDING | {Reason.FENCED}
"""They count even where they come after the program has ended."""
LEFTOVER_GRACE_S = 5.0
"""Time for what a program has left running when it ended by itself."""


class Attempt:
    """The supervisor of one attempt. :meth:`run` blocks until it is over."""

    def __init__(
        self,
        folder: WorkDir,
        node_home: Path,
        environ: Mapping[str, str],
        clock: Clock = SYSTEM,
        patience: Patience | None = None,
    ) -> None:
        self._folder = folder
        self._node_home = node_home
        self._environ = environ
        self._clock = clock
        self._patience = patience or Patience()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._job = AgentJob.model_validate_json(folder.job.read_text())
        self._launch = LaunchNote.read(folder.launch)
        self._output = OutputLog(folder.output)
        self._saver: Saver | Discarding | None = None
        self._fence: FenceWatch | None = None
        self._shared: SharedSteps | None = None
        self._spawn_began = 0.0
        self._spawned_at: float | None = None
        self._end_noted = False
        self._stop_at_end: Stop | None = None
        """What the program was asked to end for when it ended; what comes later is not why it ended."""
        self._disk_full_at_end = False
        self._cache = NO_CACHE
        self._first_point_seen = False
        self._used = 0.0
        """Joules, until the last look."""
        self._oom_kills = oom_kills()
        self._waking = Waking(clock, lambda text: self._reporter.event(text))
        self._reporter = self._make_reporter()
        self._crew = Crew(self._job, self._reporter)
        self._artifacts = Artifacts(
            self._link(), f"{self._path}/artifacts", folder.artifacts, self._reporter.event
        )
        self._disk = DiskWatch(folder.root, lambda: self._cache.trim(), self._reporter.event, clock)
        self._energy = watch_attempt(
            self._job, self._launch.gpu_ids, environ, self._tell_energy, self._reporter.event, clock
        )
        self._triggers = self._make_triggers()
        self._cores = CoreRegister()
        self._program = Program(self._notify, clock)

    # ------------------------------------------------------------------ parts

    @property
    def _path(self) -> str:
        return f"/v1/agent/runs/{self._job.run_id}/attempts/{self._job.attempt}"

    @property
    def _device(self) -> str:
        return "cuda" if self._launch.gpu_ids else "cpu"

    def _link(self) -> Link:
        return Link(self._job.controller_url, self._node_home / "token")

    def _make_reporter(self) -> Reporter:
        rank = self._job.rank
        first = Beat(phase=Phase.CLAIMING, rank=rank, pid=os.getpid(), boot_id=boot_id(), device=self._device)
        return Reporter(
            self._link(),
            f"{self._path}/beat",
            first,
            self._folder.metrics,
            self._output,
            self._notify,
            self._clock,
        )

    def _make_triggers(self) -> Triggers:
        left = self._job.seconds_left
        return Triggers(
            clock=self._clock,
            watched=self._launch.watched,
            deadline=None if left is None else self._clock.boottime() + left,
            reply=lambda: self._reporter.reply,
            fences=[lambda: self._reporter.fenced],
            waking=self._waking,
            limit=self._job.first_limit,
            at_rung=self._passed_rung,
            spent=self._spent,
            limit_grace_s=self._job.window_grace_s if self._job.limit is Reason.WINDOW else GRACE_S,
        )

    def _passed_rung(self) -> bool:
        """Whether a program that does not end at its rung by itself has come there.

        The built-in trainer does, at that very step, and needs to be left alone.
        """
        pause_at, step = self._job.pause_at, self._reporter.last_step
        if pause_at is None or step is None or self._job.spec.command is None:
            return False
        return step >= pause_at

    def _spent(self) -> str | None:
        left = self._job.joules_left
        return describe(self._job.spec, Reason.ENERGY) if left is not None and self._used > left else None

    def _tell_energy(self, used: Energy) -> None:
        self._used = used.joules
        self._reporter.update(energy=EnergyNote(joules=used.joules, source=used.source))

    def _notify(self) -> None:
        self._wake.put(None)

    def _on_signal(self, number: int, frame: object) -> None:
        self._triggers.terminated = True
        self._wake.put(None)  # SimpleQueue.put is reentrant, unlike the locks of threading.

    # ------------------------------------------------------------------ life

    def run(self) -> None:
        """From the claim to the delivered outcome."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._reporter.timing("agent_start", self._clock.monotonic() - self._launch.monotonic)
        self._reporter.start()
        self._waking.start()
        self._energy.start()
        try:
            outcome = self._live()
        except Exception as error:
            # The edge of the process: the program must not run on without us, and the controller should
            # hear why.
            log.exception("the agent fails")
            outcome = Outcome(reason=Reason.AGENT_LOST, message=f"the agent failed: {error!r}")
        self._program.close()
        self._finish(outcome)

    def _live(self) -> Outcome:
        opening = self._open()
        if opening.opened is not None and self._triggers.stop is None:
            self._crew.call(opening.opened)
            self._wait_for(lambda: self._crew.complete)
        if self._triggers.stop is not None:
            return judge(Ending(None, stop=self._triggers.stop))
        if opening.error is not None:
            return judge_opening(opening.error)
        assert opening.opened is not None
        self._spawn(opening.opened)
        self._follow()
        self._save_last()
        return judge(self._ending())

    def _open(self) -> Opening:
        """Claim and restore; comes back early, without either, where the attempt has to stop."""
        telling = Telling(
            phase=lambda phase: self._reporter.update(now=True, phase=phase),
            timing=self._reporter.timing,
            event=self._reporter.event,
            transfer=lambda moving: self._reporter.update(transfer=moving),
        )
        into = self._folder.restore
        opening = self._crew.opening(self._node_home, into, telling, self._notify, self._clock)
        opening.start()
        self._folder.prepare()
        self._wait_for(lambda: opening.done)
        return opening

    def _wait_for(self, there: Callable[[], bool]) -> None:
        """Until it is so, or the attempt has to stop."""
        while not there() and not self._triggers.look():
            self._rest(POLL_S)

    def _spawn(self, opened: Opened) -> None:
        began = self._clock.monotonic()
        reply = self._reporter.reply
        sharing = opened.shares_compiled and self._job.spec.command is None
        cache = cache_root(self._environ) if sharing else None
        command = build_command(
            self._job,
            self._folder,
            self._environ,
            gpus=bool(self._launch.gpu_ids),
            resume=opened.directory,
            mlflow_run_id=self._job.mlflow_run_id or (reply.mlflow_run_id if reply else None),
            shared_cache=cache,
            ranks=self._crew.environment(),
            network=self._crew.network(),
            cores=self._cores.take(self._job.variant.cpus) if opened.pins_cpus else (),
        )
        log.info("starting %s in %s", command.argv, command.cwd)
        self._start_followers(opened)
        if cache is not None:
            self._share(opened, cache)
        self._reporter.update(first_step=opened.first_step)
        self._spawn_began = began
        self._program.start(command)

    def _start_followers(self, opened: Opened) -> None:
        fence = FenceWatch(opened.claim, self._notify, clock=self._clock)
        saver = self._crew.saver(self._folder, opened, self._device, self._notify, self._clock)
        self._triggers.fences += [lambda: saver.fenced, lambda: fence.fenced]
        saver.start()
        fence.start()
        if self._job.rank == 0:
            self._artifacts.start()
        self._saver, self._fence, self._cache = saver, fence, opened.cache

    def _share(self, opened: Opened, cache: Path) -> None:
        saver = self._saver
        assert saver is not None
        self._shared = SharedSteps(
            opened.store,
            self._folder.wanted,
            cache,
            self._job.node,
            lambda: not saver.idle,
            self._reporter.event,
            self._notify,
            self._clock,
        )
        self._shared.start()

    def _follow(self) -> None:
        """Until neither the program nor anything that it started runs."""
        while not self._program.done:
            self._rest(self._poll_s())
            self._observe()
            if self._triggers.look():
                self._begin_stop()
            elif self._program.exit_code is not None:
                self._end_leftovers()
            if self._program.kill_if_due() and self._program.exit_code is None:
                self._reporter.event("the program did not end in time and is killed")
        self._observe()
        self._note_end()

    def _poll_s(self) -> float:
        starting = self._clock.monotonic() - self._spawn_began < _START_S
        return POLL_AT_START_S if starting and not self._first_point_seen else POLL_S

    def _observe(self) -> None:
        """Look at what the program has done."""
        now = self._clock.monotonic()
        if self._spawned_at is None and self._program.pid is not None:
            self._spawned_at = now
            self._reporter.timing("spawn", now - self._spawn_began)
            self._tell_running()
        self._output.bound()
        self._disk.look()
        if self._saver is not None:
            self._saver.scan()
        if not self._first_point_seen and self._spawned_at is not None and _size(self._folder.metrics):
            self._first_point_seen = True
            self._reporter.timing("first_step", now - self._spawned_at)
            self._reporter.wake()

    def _tell_running(self) -> None:
        name = gpu_name() if self._launch.gpu_ids else cpu_name()
        self._reporter.update(now=True, phase=Phase.RUNNING, device_name=name)
        # Freeing what dead agents left can take a while and is nobody's business here.
        threading.Thread(target=prune, args=(self._folder.root.parent,), name="prune", daemon=True).start()

    # ------------------------------------------------------------------ stopping

    def _begin_stop(self) -> None:
        """SIGTERM now, SIGKILL after the grace. A second reason may shorten the grace, never extend it."""
        stop = self._triggers.stop
        assert stop is not None
        log.info("stopping (%s): %s", stop.reason, stop.message)
        self._reporter.update(now=True, phase=Phase.SAVING)
        if not self._program.doomed or self._program.exit_code is not None:
            self._program.terminate()
        self._program.kill_in(stop.grace_s)

    def _end_leftovers(self) -> None:
        """The program has ended; what it has started and left behind gets the same signals, once."""
        if self._end_noted:
            return
        self._note_end()
        self._program.terminate()
        if not self._program.doomed:
            self._program.kill_in(LEFTOVER_GRACE_S)

    def _note_end(self) -> None:
        if not self._end_noted:
            self._end_noted, self._stop_at_end = True, self._triggers.stop
            self._disk_full_at_end = self._disk.look(now=True)
            log.info("the program has ended with code %s", self._program.exit_code)

    # ------------------------------------------------------------------ the end

    def _save_last(self) -> None:
        """Wait until the last finished checkpoint is in the store, as long as that may take."""
        saver = self._saver
        assert saver is not None
        self._output.finish()
        self._artifacts.finish()
        self._reporter.update(now=True, phase=Phase.SAVING)
        saver.end()
        began = self._clock.monotonic()
        while not saver.idle and saver.fenced is None:
            self._triggers.look()
            if self._clock.monotonic() - began > self._commit_patience(saver):
                waited = self._clock.monotonic() - began
                self._reporter.event(f"the last checkpoint could not be stored within {waited:.0f} s")
                break
            self._rest(POLL_S)
        self._triggers.look()
        saver.close()
        if self._shared is not None:
            self._shared.end(self._patience.compiled, self._rest, self._triggers.look)

    def _commit_patience(self, saver: Saver | Discarding) -> float:
        stop = self._final_stop()
        if stop is not None and stop.reason in _DECISIVE:
            return self._patience.cancelled
        if saver.unsaved is None:
            return math.inf
        full = isinstance(saver.unsaved[1], StoreFullError)
        return self._patience.store_full if full else self._patience.store_away

    def _final_stop(self) -> Stop | None:
        """What counts: why the program was asked to end, unless something decisive has come since."""
        stop = self._triggers.stop
        return stop if stop is not None and stop.reason in _DECISIVE else self._stop_at_end

    def _ending(self) -> Ending:
        kills = oom_kills()
        assert self._saver is not None
        return Ending(
            exit_code=self._program.exit_code,
            stop=self._final_stop(),
            spawn_error=self._program.failed,
            last_lines=tuple(self._output.last_lines()),
            out_of_memory=kills is not None and self._oom_kills is not None and kills > self._oom_kills,
            overran=self._program.killed,
            disk_full=self._disk_full_at_end,
            unsaved=self._saver.unsaved,
            ranks=self._job.world,
            at_rung=self._at_rung(),
        )

    def _at_rung(self) -> bool:
        """Whether what has been saved is the step at which the sweep compares. Ranks above 0 save nothing."""
        assert self._saver is not None
        pause_at, step = self._job.pause_at, self._saver.last_step
        return pause_at is not None and (self._job.rank > 0 or (step is not None and step >= pause_at))

    def _finish(self, outcome: Outcome) -> None:
        """Deliver everything, the outcome last, and leave only evidence."""
        self._output.finish()
        self._energy.end()
        self._cores.give_back()
        if self._fence is not None:
            self._fence.close()
        steps = (self._reporter.last_step, self._saver.last_step if self._saver else None)
        known = [step for step in steps if step is not None]
        outcome = outcome.model_copy(update={"last_step": max(known) if known else None})
        self._reporter.program_ended = self._program.ended_at
        closing = Closing(
            self._folder,
            self._reporter,
            self._artifacts,
            self._patience,
            self._rest,
            lambda: self._triggers.terminated,
            self._clock,
        )
        sending = isinstance(self._saver, Saver) and outcome.reason is not Reason.FENCED
        closing.run(outcome, with_artifacts=sending)

    def _rest(self, seconds: float) -> None:
        """Sleep until something has changed, at most so long."""
        try:
            self._wake.get(timeout=seconds)
            while True:
                self._wake.get_nowait()
        except queue.Empty:
            return


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
