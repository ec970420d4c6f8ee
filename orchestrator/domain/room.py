"""What is free on a node, and who holds the rest. One function says whether something fits, and why not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.domain.demand import Demand
from orchestrator.domain.fleet import GpuState, NodeInfo

CONTEXT_BYTES = 512 * 2**20
"""Memory that a process takes on a GPU beside what it asks for: the CUDA context."""
FOREIGN_USE = 0.2
"""Use of a GPU by others from which on nothing of ours begins there."""
FOREIGN_MEMORY = 0.5
"""Share of a GPU's memory taken by others from which on it is not granted as a whole."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Grant:
    """What one rank of an attempt holds on its node."""

    run_id: str
    name: str
    ray_id: str
    demand: Demand
    order: tuple[int, int, int]
    """What goes first is smaller: minus priority, minus front, number of acceptance."""
    gpu_ids: tuple[int, ...] = ()
    ends: float | None = None
    """Unix time at which it is expected to end; None where nothing is known."""
    estimated: bool = False
    """Whether `ends` is told from how fast it goes; else it is the latest that its limits allow."""
    stopping: bool = False
    """Whether it has been ordered to save and go."""
    backfill: bool = False
    saved: float = 0.0
    """Unix time of what it could go on from: its last checkpoint, or else its begin."""
    user: str = ""
    experiment: str = ""
    node: str = ""
    """Name of the node. When it is back as another Ray node, it is held there."""

    @property
    def priority(self) -> int:
        """Higher goes first."""
        return -self.order[0]


@dataclass(slots=True)
class GpuRoom:
    """What is free of one GPU."""

    state: GpuState | None
    """None where the node has not told."""
    whole: bool = False
    """Whether one attempt has all of it."""
    shared: int = 0
    """Bytes that shares have taken, with their contexts."""

    @property
    def free_memory(self) -> int:
        """Bytes for shares."""
        return 0 if self.state is None else self.state.memory - self.state.foreign_memory - self.shared

    def why_not(self, share: int | None) -> str:
        """What stands in the way of a share of so many bytes, or of the whole GPU; empty: nothing."""
        state = self.state
        if self.whole:
            return "granted as a whole"
        if state is not None and state.foreign_use > FOREIGN_USE:
            return f"{state.foreign_use:.0%} used by others"
        if share is None:
            if self.shared:
                return f"{self.shared // _MIB} MiB shared"
            if state is not None and state.foreign_memory > FOREIGN_MEMORY * state.memory:
                return f"{state.foreign_memory // _MIB} of {state.memory // _MIB} MiB used by others"
            return ""
        if state is None:
            return "its memory is not known, so it cannot be shared"
        missing = share + CONTEXT_BYTES - self.free_memory
        if missing <= 0:
            return ""
        others = f", {state.foreign_memory // _MIB} MiB used by others" if state.foreign_memory else ""
        return f"{-(-missing // _MIB)} MiB missing ({max(0, self.free_memory) // _MIB} MiB free{others})"


@dataclass(slots=True)
class Room:
    """A node with what attempts hold on it. Changes while a plan is made."""

    node: NodeInfo
    cpus: float = 0.0
    """Free."""
    memory: int = 0
    """Free bytes."""
    gpus: list[GpuRoom] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)

    @classmethod
    def of(cls, node: NodeInfo) -> Room:
        """The node when nothing runs on it."""
        states = {state.index: state for state in node.report.gpus}
        gpus = [GpuRoom(states.get(index)) for index in range(int(node.gpus))]
        return cls(node, node.cpus, node.memory, gpus)

    def copy(self) -> Room:
        """One to try things on."""
        gpus = [GpuRoom(gpu.state, gpu.whole, gpu.shared) for gpu in self.gpus]
        return Room(self.node, self.cpus, self.memory, gpus, list(self.grants))

    def fits(self, demand: Demand) -> bool:
        """Whether one rank of it can be placed here now."""
        if demand.cpus > self.cpus or demand.memory > self.memory:
            return False
        if not demand.gpus:
            return True
        return sum(not gpu.why_not(demand.gpu_memory) for gpu in self.gpus) >= demand.gpus

    def fits_within(self, demand: Demand, bound: Room | None) -> bool:
        """Whether one rank can be placed here now and in a bound on the same node, on the same GPUs."""
        if bound is None:
            return self.fits(demand)
        return self.fits(demand) and bound.fits(demand) and len(self.choose(demand, bound)) == demand.gpus

    def choose(self, demand: Demand, bound: Room | None = None) -> tuple[int, ...]:
        """The GPUs that one rank gets; of those that can be shared the fullest that will do."""
        fitting = self._fitting(demand)
        if bound is not None:
            free = set(bound._fitting(demand))
            fitting = [index for index in fitting if index in free]
        if demand.gpu_memory is not None:
            fitting.sort(key=lambda index: (self.gpus[index].free_memory, index))
        return tuple(fitting[: demand.gpus])

    def _fitting(self, demand: Demand) -> list[int]:
        return [index for index, gpu in enumerate(self.gpus) if not gpu.why_not(demand.gpu_memory)]

    def take(self, grant: Grant) -> None:
        """Count a grant in."""
        demand = grant.demand
        self.cpus -= demand.cpus
        self.memory -= demand.memory
        for index in grant.gpu_ids:
            if index >= len(self.gpus):  # the node has come back with fewer
                continue
            if demand.gpu_memory is None:
                self.gpus[index].whole = True
            else:
                self.gpus[index].shared += demand.gpu_memory + CONTEXT_BYTES
        self.grants.append(grant)

    def give_back(self, grant: Grant) -> None:
        """Count a grant out."""
        demand = grant.demand
        self.grants.remove(grant)
        self.cpus += demand.cpus
        self.memory += demand.memory
        for index in grant.gpu_ids:
            if index >= len(self.gpus):
                continue
            if demand.gpu_memory is None:
                self.gpus[index].whole = False
            else:
                self.gpus[index].shared -= demand.gpu_memory + CONTEXT_BYTES

    def without(self, grants: Iterable[Grant]) -> Room:
        """The room as it is when these have ended."""
        room = self.copy()
        for grant in grants:
            room.give_back(grant)
        return room

    def could_ever(self, demand: Demand) -> int:
        """How many ranks of it would fit if nothing of ours ran here."""
        trial, ranks = self.without(self.grants), 0
        while ranks < demand.ranks and trial.fits(demand):
            trial.take(Grant("", "", self.node.ray_id, demand, (0, 0, 0), trial.choose(demand)))
            ranks += 1
        return ranks

    def lacks(self, demand: Demand) -> str:
        """What stands in the way of one rank of it, in words; empty where it fits."""
        node = self.node
        if node.closed:
            return node.closed
        amounts = (
            ("CPUs", demand.cpus, node.cpus, self.cpus),
            ("GPUs", demand.gpus, len(self.gpus), len(self.gpus)),
            ("bytes of memory", demand.memory, node.memory, self.memory),
        )
        for what, wanted, total, free in amounts:
            if wanted > total:
                return f"it has {total:g} {what}, {wanted:g} wanted"
            if wanted > free:
                return f"{free:g} of {total:g} {what} free, {wanted:g} wanted, in use by {self._users()}"
        why = {index: gpu.why_not(demand.gpu_memory) for index, gpu in enumerate(self.gpus)}
        if demand.gpus and sum(not text for text in why.values()) < demand.gpus:
            told = "; ".join(f"GPU {index}: {text}" for index, text in why.items() if text)
            users = self._users()
            return told + (f", in use by {users}" if users else "")
        return ""

    def _users(self) -> str:
        names = list(dict.fromkeys(grant.name for grant in self.grants))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more


def rooms_of(nodes: Iterable[NodeInfo], grants: Iterable[Grant]) -> dict[str, Room]:
    """The rooms of all nodes by their Ray id; grants on nodes that are not there count nowhere.

    A machine that Ray had given up comes back as another Ray node, and what was granted there may still run.
    """
    rooms = {node.ray_id: Room.of(node) for node in nodes}
    living = {room.node.name: room for room in rooms.values() if room.node.alive}
    for grant in grants:
        room = rooms.get(grant.ray_id)
        if room is None or not room.node.alive:
            room = living.get(grant.node, room)
        if room is not None:
            room.take(grant)
    return rooms


def must_end(room: Room, demand: Demand, candidates: Sequence[Grant]) -> list[Grant] | None:
    """Those of the grants, taken in this order, that have to end before one rank fits; None: they do not do.

    What turns out not to be in the way is left out again.
    """
    trial, taken = room.copy(), list[Grant]()
    for grant in candidates:
        if trial.fits(demand):
            break
        trial.give_back(grant)
        taken.append(grant)
    if not trial.fits(demand):
        return None
    for grant in list(taken):
        trial.take(grant)
        if trial.fits(demand):
            taken.remove(grant)
        else:
            trial.give_back(grant)
    return taken
