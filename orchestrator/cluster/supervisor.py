"""The daemon that keeps this machine's services running: ``python -m orchestrator.cluster.supervisor HOME``.

There is one for each state folder. It follows ``stack.json``: what is added there is started, what is removed
is stopped, what changes is started again. When it is killed, the services run on and the next supervisor
goes on with them. SIGTERM ends the supervisor only; `orch down` ends the services.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import logging.handlers
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Final

from orchestrator.agent.identity import identify
from orchestrator.clock import SYSTEM
from orchestrator.cluster.conditions import Conditions
from orchestrator.cluster.config import StackConfig, load_config
from orchestrator.cluster.host import GRACE_S, Host, bound_log
from orchestrator.cluster.keeper import Keeper
from orchestrator.cluster.membership import LOST_S, Membership
from orchestrator.cluster.processes import adopt_orphans, end_sessions, marked_sessions
from orchestrator.cluster.services import services
from orchestrator.cluster.state import Process, ServicePhase, load_state, save_state
from orchestrator.errors import SetupError
from orchestrator.settings import Home

log = logging.getLogger(__name__)

BUSY_TICK_S: Final = 0.1
CALM_TICK_S: Final = 1.0
LOG_CHECK_S: Final = 60.0


class Supervisor:
    """One machine's services and the loop that keeps them."""

    def __init__(self, home: Home, config: StackConfig) -> None:
        self._home = home
        self._config = config
        self._host = Host(home, config.id)
        self._state = load_state(home)
        self._keepers: dict[str, Keeper] = {}
        self._membership = Membership(config, home)
        self._conditions = Conditions(config, home)
        self._written = ""
        self._logs_checked = SYSTEM.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; then the services are left alone."""
        self._state.supervisor = _own_id()
        self._end_strangers()
        self._follow(self._config)
        changed = self._config_time()
        while not stop.is_set():
            if self._config_time() != changed:
                changed = self._config_time()
                self._reload()
            for keeper in self._keepers.values():
                self._keep(keeper)
            self._save()
            self._bound_logs()
            calm = all(keeper.record.phase is ServicePhase.READY for keeper in self._keepers.values())
            stop.wait(CALM_TICK_S if calm else BUSY_TICK_S)
        self._membership.stop()
        self._conditions.stop()

    def _keep(self, keeper: Keeper) -> None:
        before = keeper.record.leader
        keeper.tick()
        node = keeper.service.node
        if node and min(keeper.ready_for_s(), self._membership.lost_for_s(node)) > LOST_S:
            self._membership.forget(node)
            keeper.replace("Ray does not count it among its nodes any more")
        if keeper.record.leader != before:
            # A session that was started is written down at once: the next supervisor must know it.
            self._save(force=True)

    def _reload(self) -> None:
        try:
            config = load_config(self._home)
        except SetupError as error:
            log.error("%s; going on as before", error.message)
            return
        if config is None or config.id != self._config.id:
            log.error("%s is gone or not ours; going on as before", self._home.stack_file)
            return
        self._follow(config)

    def _follow(self, config: StackConfig) -> None:
        """Make keepers for what is wanted, and stop what is not."""
        wanted = {service.name: service for service in services(config, self._home)}
        for name in [name for name in self._state.services if name not in wanted]:
            log.info("%s: not wanted any more", name)
            record = self._state.services.pop(name)
            if record.leader is not None:
                self._host.end(record.leader)
        self._keepers = {
            name: Keeper(service, self._host, self._state.services.get(name))
            for name, service in wanted.items()
        }
        self._config = config
        self._membership.stop()
        self._membership = Membership(config, self._home)
        self._membership.start()
        self._conditions.stop()
        self._conditions = Conditions(config, self._home)
        self._conditions.start()
        self._save(force=True)

    def _end_strangers(self) -> None:
        """End sessions of ours that nobody wrote down: their supervisor was killed as it started them."""
        known = self._state.sessions()
        strangers = {
            sid: began for sid, began in marked_sessions(self._config.id).items() if sid not in known
        }
        if strangers:
            log.warning("ending services that no supervisor knows: %s", sorted(strangers))
            end_sessions(strangers, GRACE_S)

    def _save(self, force: bool = False) -> None:
        self._state.services = {name: keeper.record for name, keeper in self._keepers.items()}
        text = self._state.model_dump_json()
        if force or text != self._written:
            save_state(self._home, self._state)
            self._written = text

    def _bound_logs(self) -> None:
        if SYSTEM.monotonic() - self._logs_checked > LOG_CHECK_S:
            self._logs_checked = SYSTEM.monotonic()
            for path in self._home.service_logs.glob("*.log"):
                bound_log(path)

    def _config_time(self) -> tuple[int, int]:
        try:
            status = self._home.stack_file.stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_mtime_ns, status.st_ino


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM; 0 at once where another supervisor of the same folder runs."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.cluster.supervisor")
    parser.add_argument("home", type=Path, help="the state folder")
    parser.add_argument("--detach", action="store_true", help="go on in the background")
    options = parser.parse_args(argv)
    home = Home(options.home.absolute())
    if options.detach and not _detach():
        return 0
    _log_to(home.service_logs / "supervisor.log")
    lock = _lock(home)
    if lock is None:
        log.info("another supervisor runs already")
        return 0
    config = load_config(home)
    if config is None:
        log.error("%s does not exist: nothing to run", home.stack_file)
        return SetupError.exit_code
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _setter(stop))
    adopt_orphans()
    log.info("supervising %s", home.root)
    try:
        Supervisor(home, config).run(stop)
    except Exception:  # the boundary of this process; the services run on without it
        log.exception("the supervisor failed")
        return 1
    finally:
        lock.close()
    log.info("ended; services run on")
    return 0


def _setter(stop: threading.Event) -> Callable[[int, FrameType | None], None]:
    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    return on_signal


def _detach() -> bool:
    """Fork twice into a session of its own; True in the process that goes on."""
    if os.fork():
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.chdir("/")
    return True


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=2_000_000, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _lock(home: Home) -> IO[str] | None:
    file = home.supervisor_lock.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _own_id() -> Process:
    who = identify(os.getpid())
    assert who is not None, "this process runs"
    return Process(pid=who.pid, create_time=who.create_time)


if __name__ == "__main__":
    sys.exit(main())
