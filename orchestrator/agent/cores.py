"""Which processors an attempt's program runs on: a set of its own, as long as there are enough.

All agents of one user on one machine share a small register, whichever stack or node they belong to. It says
which agent has which processors, and is locked while one looks and chooses. An entry counts as long as its
agent lives; so nothing has to be given back after a crash.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.agent.identity import ProcessId, identify

log = logging.getLogger(__name__)

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/{}"


def register_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The register of this user on this machine. Not in a state folder, of which there can be several."""
    named = (os.environ if environ is None else environ).get("ORCH_CPU_REGISTER")
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    return Path(named or base) / f"orch-cores-{os.getuid()}"


class CoreRegister:
    """Gives out processors. Where anything is wrong with the register, nobody is pinned."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or register_folder()

    def take(self, count: int, usable: Collection[int] | None = None) -> list[int]:
        """Processors for this process alone, until it ends; none where not so many are free.

        `usable` are those that may be given out, by default the ones that this process may use.
        """
        usable, who = os.sched_getaffinity(0) if usable is None else usable, identify(os.getpid())
        assert who is not None, "this process exists"
        try:
            with self._locked() as file:
                entries = [entry for entry in _read(file) if entry[0].alive() and entry[0] != who]
                taken = {core for _, cores in entries for core in cores}
                chosen = choose(count, physical_cores(usable), taken)
                _write(file, [*entries, (who, chosen)] if chosen else entries)
                return chosen
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the program is not pinned to processors: %s", error)
            return []

    def give_back(self) -> None:
        """Others may have the processors of this process."""
        self.take(0)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        status = self._folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(f"{self._folder} belongs to somebody else")
        file = os.open(self._folder / "register.json", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def choose(count: int, cores: Sequence[Sequence[int]], taken: Collection[int]) -> list[int]:
    """So many free processors of these physical cores, whole cores where possible; none where too few are.

    What is left over goes to a core that others have a part of already, rather than breaking up a whole one.
    """
    free = [[cpu for cpu in core if cpu not in taken] for core in cores]
    if count < 1 or sum(map(len, free)) < count:
        return []
    whole = [core for core, left in zip(cores, free, strict=True) if len(left) == len(core)]
    parts = sorted(
        (left for core, left in zip(cores, free, strict=True) if 0 < len(left) < len(core)), key=len
    )
    chosen: list[int] = []
    for core in whole:
        if len(chosen) + len(core) <= count:
            chosen += core
    for left in [*parts, *(core for core in whole if core[0] not in chosen)]:
        chosen += left[: count - len(chosen)]
    return sorted(chosen)


def physical_cores(usable: Collection[int]) -> list[list[int]]:
    """These processors by physical core, in the order of the machine's packages and cores."""
    cores: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(usable):
        package, core = _topology(cpu, "physical_package_id"), _topology(cpu, "core_id")
        cores.setdefault((package, core if core >= 0 else cpu), []).append(cpu)
    return [cores[key] for key in sorted(cores)]


def _topology(cpu: int, what: str) -> int:
    """-1 where the system does not say."""
    try:
        return int(Path(_TOPOLOGY.format(cpu, what)).read_text())
    except (OSError, ValueError):
        return -1


def _read(file: int) -> list[tuple[ProcessId, list[int]]]:
    text = os.pread(file, 1 << 20, 0)
    return [
        (ProcessId(int(entry["pid"]), float(entry["create_time"])), [int(cpu) for cpu in entry["cpus"]])
        for entry in (json.loads(text) if text else [])
    ]


def _write(file: int, entries: list[tuple[ProcessId, list[int]]]) -> None:
    data = json.dumps(
        [{"pid": who.pid, "create_time": who.create_time, "cpus": cpus} for who, cpus in entries]
    ).encode()
    os.ftruncate(file, 0)
    os.pwrite(file, data, 0)
