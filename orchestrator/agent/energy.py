"""The energy that an attempt uses on its node, for any program: see `docs/energy.md` for what counts.

Of each interval between two looks

* the processors' energy is the part of what RAPL counted that the attempt's processes had of all busy time;
  where RAPL cannot be read or believed, a number of watts for each second of a processor;
* a granted GPU's energy is what NVML counted, times the share that was granted; else a number of watts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.agent.job import AgentJob
from orchestrator.agent.usage import TreeUsage, Usage
from orchestrator.clock import Clock
from orchestrator.domain.energy import Energy, EnergySource, joined
from orchestrator.domain.limits import share_of
from orchestrator.errors import SetupError
from orchestrator.settings import watts
from trainer.counters import Energy as Device
from trainer.counters import EnergyCounter, gpu, rapl

log = logging.getLogger(__name__)

EVERY_S: Final = 2.0
_LOOK_SHARE: Final = 1000
"""Between two looks passes at least so many times the processor time that a look takes."""
_FARTHEST_S: Final = 30.0
_DELAY_S: Final = 1.0
"""A counter may tell so much later what it has counted."""
_LAST_LOOK_S: Final = 2.0
"""A driver that does not answer does not hold up the end for longer."""
_CPU_WATTS: Final = 5.0
_GPU_WATTS: Final = 200.0


@dataclass(frozen=True)
class Rates:
    """What is assumed where nothing can be measured, in watts."""

    cpu: float = _CPU_WATTS
    """Of each processor while it is busy."""
    gpu: float = _GPU_WATTS
    """Of each GPU from the attempt's begin to its end."""

    @staticmethod
    def of_node(environ: Mapping[str, str], say: Callable[[str], None]) -> Rates:
        """As the node's settings say; says what they cannot mean and goes on without."""

        def read(name: str, default: float) -> float:
            try:
                return watts(name, default, environ)
            except SetupError as error:
                say(f"{error.message}: {default:g} W counts")
                return default

        return Rates(read("ORCH_CPU_WATTS", _CPU_WATTS), read("ORCH_GPU_WATTS", _GPU_WATTS))


@dataclass(frozen=True)
class Devices:
    """What the attempt uses energy of."""

    cpus: Device
    gpus: Sequence[Device] = ()
    share: float = 1.0
    """The part of each GPU that was granted."""

    @staticmethod
    def of_node(job: AgentJob, gpus: Sequence[str]) -> Devices:
        """The machine's processors and, of the GPUs that the program may see, those of this rank."""
        count = job.variant.gpus
        own = gpus if len(gpus) <= count else gpus[job.local_rank * count :][:count]
        return Devices(rapl(), [gpu(name) for name in own], share_of(job.variant, job.gpu_total))


class EnergyMeter:
    """Adds up from when it is made. `say` is told, once each, of counters that do not answer any more."""

    def __init__(
        self, devices: Devices, usage: Usage, rates: Rates, say: Callable[[str], None], clock: Clock
    ) -> None:
        self._cpus = _Part(devices.cpus, say)
        self._gpus = [_Part(device, say) for device in devices.gpus]
        self._share = devices.share
        self._usage = usage
        self._rates = rates
        self._clock = clock
        self._joules = 0.0
        self._source: EnergySource | None = None
        self._at, self._ours, self._machine = clock.monotonic(), usage.ours(), usage.machine()

    def look(self) -> Energy | None:
        """What was used until now; None where that is nothing."""
        now = self._clock.monotonic()
        seconds, self._at = now - self._at, now
        self._look_at_cpus(seconds)
        for part in self._gpus:
            used = part.take(seconds)
            whole = self._rates.gpu * seconds if used is None else used
            self._add(whole * self._share, measured=used is not None)
        return Energy(self._joules, self._source) if self._source is not None else None

    def _look_at_cpus(self, seconds: float) -> None:
        used, ours, machine = self._cpus.take(seconds), self._usage.ours(), self._usage.machine()
        mine, self._ours = ours - self._ours, ours
        before, self._machine = self._machine, machine
        if used is None or before is None or machine is None:
            self._add(self._rates.cpu * mine, measured=False)
        else:
            self._add(used * _part_of(mine, machine - before), measured=True)

    def _add(self, joules: float, *, measured: bool) -> None:
        if joules > 0:
            source = EnergySource.MEASURED if measured else EnergySource.ESTIMATED
            self._joules, self._source = self._joules + joules, joined(self._source, source)


def _part_of(mine: float, busy: float) -> float:
    """The two are read one after the other, so the part may come out above the whole."""
    return min(1.0, mine / busy) if busy > 0 else float(mine > 0)


class EnergyWatch:
    """Lets a meter look now and then, in a thread of its own; `tell` hears the sum each time.

    `make` makes the meter, in that thread: a driver may take its time.
    """

    def __init__(self, make: Callable[[], EnergyMeter], tell: Callable[[Energy], None]) -> None:
        self._make = make
        self._tell = tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    def end(self) -> None:
        """Look for the last time."""
        self._ended.set()
        self._thread.join(_LAST_LOOK_S)

    def _run(self) -> None:
        try:
            self._look_on(self._make())
        except Exception:
            # The edge of a thread: without its energy the attempt goes on.
            log.exception("energy is not counted any more")

    def _look_on(self, meter: EnergyMeter) -> None:
        rest, last = EVERY_S, False
        while not last:
            last = self._ended.wait(rest)
            begun = time.thread_time()
            used = meter.look()
            rest = pause(time.thread_time() - begun)
            if used is not None:
                self._tell(used)


class _Part:
    """One counter, as far as it can be believed."""

    def __init__(self, device: Device, say: Callable[[str], None]) -> None:
        self._counter: EnergyCounter | None = device.counter
        self._say = say
        self._last = device.joules()
        self._said = False

    def take(self, seconds: float) -> float | None:
        """Joules since the last time, so many seconds ago; None where they are not known: the counter does
        not answer, it began anew, or nobody can tell how often it did.
        """
        counter = self._counter
        if counter is None:
            return None
        now = counter.joules()
        before, self._last = self._last, now
        if now is None:
            self._mourn(counter)
        if now is None or before is None or seconds > counter.longest_s:
            return None
        most = counter.most_watts * (seconds + _DELAY_S)
        return now - before if 0 <= now - before <= most else None

    def _mourn(self, counter: EnergyCounter) -> None:
        if not self._said:
            self._said = True
            self._say(f"{counter.source}: it does not answer; what it would count is estimated meanwhile")


def pause(cost_s: float) -> float:
    """Seconds until the next look, where the last one has cost so much time of a processor: looking takes at
    most a thousandth of one."""
    return min(_FARTHEST_S, max(EVERY_S, _LOOK_SHARE * cost_s))


def watch_attempt(
    job: AgentJob,
    gpus: Sequence[str],
    environ: Mapping[str, str],
    tell: Callable[[Energy], None],
    say: Callable[[str], None],
    clock: Clock,
) -> EnergyWatch:
    """The watch over what this process, the agent, and all that comes from it use; `gpus` are those that the
    program may see."""

    def make() -> EnergyMeter:
        devices = Devices.of_node(job, gpus)
        for device in (devices.cpus, *devices.gpus):
            log.info("energy: %s", device.note)
        return EnergyMeter(devices, TreeUsage(os.getpid()), Rates.of_node(environ, say), say, clock)

    return EnergyWatch(make, tell)
