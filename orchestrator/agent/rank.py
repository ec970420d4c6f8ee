"""One rank of a gang, from its agent's side.

Rank 0's agent does what the agent of a single process does. When it has claimed the run and restored, it says
where the ranks meet and which checkpoint they go on from, and starts the program once all are there. The
agents of the other ranks wait for that word, make sure that the attempt owns the run, restore the same
checkpoint and start. They commit and measure nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from orchestrator.agent.job import AgentJob
from orchestrator.agent.opening import Opened, Opening, Telling, store_uri
from orchestrator.agent.ports import pick_port
from orchestrator.agent.reporter import Reporter
from orchestrator.agent.saver import Destination, Saver
from orchestrator.agent.workdir import WorkDir, remove
from orchestrator.clock import SYSTEM, Clock
from orchestrator.contract import parse_step
from orchestrator.domain.states import Phase
from orchestrator.errors import ConflictError, DamagedError, FencedError, OrchError, StoreUnavailableError
from orchestrator.messages_agent import Rendezvous
from orchestrator.store.cache import CheckpointCache
from orchestrator.store.objects import open_store
from orchestrator.store.runlog import Claim, RunLog

_POLL_S = 0.05


class Follower(Opening):
    """The beginning of a rank above 0."""

    def __init__(
        self,
        job: AgentJob,
        node_home: Path,
        into: Path,
        telling: Telling,
        notify: Callable[[], None],
        meeting: Callable[[], Rendezvous | None],
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(job, node_home, into, telling, notify, clock)
        self._meeting = meeting

    def _open(self) -> Opened:
        self._telling.phase(Phase.CLAIMING)
        while (meeting := self._meeting()) is None:
            self._clock.sleep(_POLL_S)
        began = self._clock.monotonic()
        self._telling.phase(Phase.RESTORING)
        store = open_store(store_uri(self._job, self._node_home))
        self._cache = CheckpointCache.of_node(self._node_home)
        log_of_run = RunLog(store, self._job.run_id)
        claim = self._patiently(lambda: claim_of(log_of_run, self._job.attempt))
        opened = Opened(store, claim, None, None, 0, self._cache)
        if meeting.run is not None:
            restored = self._fetched(store, meeting.run, meeting.step)
            if str(restored.record.id) != meeting.checkpoint:
                raise ConflictError(f"rank 0 goes on from another checkpoint of step {meeting.step}")
            opened = self._restored(store, claim, restored)
        elif meeting.path:
            opened = self._restore_from(store, claim, self._job.restore_from)
        self._telling.timing("restore", self._clock.monotonic() - began)
        return opened


def claim_of(log: RunLog, attempt: int) -> Claim:
    """The claim that rank 0 of this attempt holds, to look at and not to write with.

    FencedError where a newer attempt has the run, StoreUnavailableError where the claim cannot be seen yet.
    """
    history = log.history()
    if history.owner > attempt:
        raise FencedError(f"attempt {history.owner} has taken run {log.run_id} from attempt {attempt}")
    if history.owner < attempt:
        raise StoreUnavailableError(f"run {log.run_id} is not claimed by attempt {attempt} yet")
    if history.fence is None:
        raise DamagedError(f"run {log.run_id}: the record by which attempt {attempt} took it is damaged")
    return Claim(log, history.fence)


class Crew:
    """What an agent knows of the other ranks of its attempt."""

    def __init__(self, job: AgentJob, reporter: Reporter) -> None:
        self._job = job
        self._reporter = reporter
        self._meeting: Rendezvous | None = None

    @property
    def meeting(self) -> Rendezvous | None:
        """Where all ranks meet, once all are there. It stays: a controller that has just started does not
        know it yet.
        """
        if self._meeting is None and self._reporter.reply is not None:
            self._meeting = self._reporter.reply.rendezvous
        return self._meeting

    def opening(
        self, node_home: Path, into: Path, telling: Telling, notify: Callable[[], None], clock: Clock
    ) -> Opening:
        """How this rank begins."""
        self._reporter.hurried = self._job.world > 1
        if self._job.rank == 0:
            return Opening(self._job, node_home, into, telling, notify, clock)
        return Follower(self._job, node_home, into, telling, notify, lambda: self.meeting, clock)

    def call(self, opened: Opened) -> None:
        """Rank 0 tells the others where to meet."""
        if self._job.world > 1 and self._job.rank == 0:
            record = opened.restored.record if opened.restored else None
            meeting = Rendezvous(
                host=self._job.address,
                port=pick_port(""),
                run=record.run if record else None,
                step=record.step if record else None,
                checkpoint=str(record.id) if record else "",
                path=record is None and opened.directory is not None,
            )
            self._reporter.update(now=True, rendezvous=meeting)

    def saver(
        self,
        folder: WorkDir,
        opened: Opened,
        device: str,
        notify: Callable[[], None],
        clock: Clock,
    ) -> Saver | Discarding:
        """What becomes of the program's checkpoints."""
        job = self._job
        if job.rank:
            return Discarding(folder)
        to = Destination(job.node, device, job.store_uri, job.spec.checkpoint)
        return Saver(folder, opened, to, self._reporter, notify, clock)

    @property
    def complete(self) -> bool:
        """Whether the program may start."""
        if self._job.world > 1 and self.meeting is None:
            return False
        self._reporter.hurried = False
        return True

    def environment(self) -> dict[str, str]:
        """torchrun's variables; none where the program runs alone."""
        if self._job.world == 1:
            return {}
        meeting = self.meeting
        assert meeting is not None, "the program starts after the ranks have met"
        return {
            "RANK": str(self._job.rank),
            "WORLD_SIZE": str(self._job.world),
            "LOCAL_RANK": str(self._job.local_rank),
            "MASTER_ADDR": meeting.host,
            "MASTER_PORT": str(meeting.port),
        }

    def network(self) -> dict[str, str]:
        """The interface to talk over; a spec may name another.

        Gloo would take the one that the machine's name leads to, on many systems a loopback address.
        """
        name = interface_of(self._job.address) if self._job.world > 1 else None
        return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if name else {}


class Discarding:
    """Stands where rank 0 has its saver: what another rank publishes is removed."""

    fenced: str | None = None
    unsaved: tuple[int, OrchError] | None = None
    last_step: int | None = None
    idle = True

    def __init__(self, folder: WorkDir) -> None:
        self._folder = folder

    def start(self) -> None:
        """Nothing is to be done."""

    def scan(self) -> None:
        """Remove what the program has published."""
        try:
            names = os.listdir(self._folder.checkpoints)
        except OSError:
            return  # The program may do with its directory what it likes.
        for name in names:
            if parse_step(name) is not None:
                remove(self._folder.checkpoints / name)

    def end(self) -> None:
        """Nothing is to be done."""

    def close(self) -> None:
        """Nothing is to be done."""


def interface_of(address: str) -> str | None:
    """The network interface with this address; None where none has it."""
    import psutil  # takes time, and only gangs need it

    if address.startswith("127."):
        address = "127.0.0.1"
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    return None
