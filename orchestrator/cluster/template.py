"""The template of a node: a process that has imported what workers and agents need, and forks them.

``python -P -m orchestrator.cluster.template SOCKET``. One for each node, in the session of its service; the
first worker that finds none starts it. A Ray worker and an agent cost a second of processor time when each
imports everything itself, and a fork costs some milliseconds; they also share the template's memory. Nothing
depends on it: where it does not answer, both start by themselves.

The template stays single-threaded, because a fork copies only the thread that makes it: locks that others
held would stay locked in the child for ever. It holds no connection to Ray and does nothing but fork.

Ray's library reads its settings when it is loaded, the number of the driver's job among them. So a template
makes workers only for the settings that it has itself. Asked for others, after the controller has another
driver for instance, it refuses and ends, and the next one has those. It ends with its raylet, too.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import logging
import os
import select
import signal
import socket
import struct
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

from orchestrator.agent import __main__ as agent_main
from orchestrator.agent import detach
from orchestrator.agent.template import AGENT, GO, PATIENCE_S, SIZE, WORKER, taken_apart
from orchestrator.clock import SYSTEM
from orchestrator.cluster import process_title
from orchestrator.cluster.worker_stub import worker_program

log = logging.getLogger(__name__)

WANTED: Final = (
    "orchestrator.cluster.ray_gateway",
    "numpy",
    "ray._common.pydantic_compat",
    "ray._common.usage.usage_lib",
    "starlette.concurrency",
)
"""What a worker imports, Ray among it. pyarrow, which it imports too, starts a thread and has to wait."""
READ_S: Final = 2.0
"""For a whole request to arrive; whoever asks sends it at once."""
_BLAS: Final = "OPENBLAS_NUM_THREADS"
_SETTINGS: Final = ("RAY_", "PYTHON", "LD_")
_RAYLET: Final = "RAY_RAYLET_PID"
_OOM: Final = "RAY_worker_oom_score_adjustment"
_LOOK_S: Final = 30.0
_BACKLOG: Final = 64
_MOST_BYTES: Final = 16 << 20
_LOCK_S: Final = 0.2


class Template:
    """Answers on one socket until the socket's file is gone, or the raylet."""

    def __init__(self, path: Path, program: str) -> None:
        self._path = path
        self._settings = settings(os.environ)
        self._outdated = False
        _import_all()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._worker = compile(Path(program).read_bytes(), program, "exec")
        self._program = program

    def serve(self) -> None:
        """Fork on request."""
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise RuntimeError(f"{threads} threads run here: forks would not be safe")
        # Children that have ended are collected by the kernel.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        gc.collect()
        gc.freeze()  # A collection in a child would copy every page that it looks at.
        raylet = _raylet()
        self._listen()
        while self._path.exists() and not self._outdated:
            ready, _, _ = select.select([self._socket.fileno(), *raylet], [], [], _LOOK_S)
            if raylet and raylet[0] in ready:
                log.info("the raylet has ended")
                self._path.unlink(missing_ok=True)
                return
            if ready:
                connection, _ = self._socket.accept()
                with connection:
                    self._answer(connection)

    def _listen(self) -> None:
        temporary = self._path.with_name(self._path.name + ".new")
        temporary.unlink(missing_ok=True)
        self._socket.bind(str(temporary))
        self._socket.listen(_BACKLOG)
        temporary.rename(self._path)  # Whoever sees it can connect.

    def _answer(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            connection.settimeout(READ_S)
            _check_user(connection)
            kind, argv, env, cwd = taken_apart(_receive(connection, descriptors))
            become = {WORKER: self._worker_for, AGENT: self._agent_for}[kind](argv, env, cwd, descriptors)
            if os.fork() == 0:
                _live(lambda: become(connection))
        except Exception as error:  # whatever was asked: the next one may be in order
            log.exception("a request failed")
            _try_to_say(connection, f"{type(error).__name__}: {error}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _worker_for(
        self, argv: list[str], env: dict[str, str], cwd: str, descriptors: list[int]
    ) -> Callable[[socket.socket], None]:
        """A worker of Ray, in this session, as a child of this process."""
        if settings(env) != self._settings or argv[0] != sys.executable:
            self._outdated = True
            self._path.unlink(missing_ok=True)
            raise ValueError("the worker is for other settings of Ray")

        def become(connection: socket.socket) -> None:
            os.setpgid(0, 0)  # Ray ends the group of a worker that ends.
            _wait_to_go(connection)
            os.chdir(cwd)
            _clean_up()
            _adopt(env)
            _mark_as_worker(env)
            for target, source in enumerate(descriptors):
                os.dup2(source, target)
            os.closerange(3, 256)
            sys.argv = [self._program, *argv[1:]]
            main = types.ModuleType("__main__")
            main.__file__ = self._program
            sys.modules["__main__"] = main
            exec(self._worker, main.__dict__)

        return become

    def _agent_for(
        self, argv: list[str], env: dict[str, str], cwd: str, descriptors: list[int]
    ) -> Callable[[socket.socket], None]:
        """An agent, forked twice, in a session of its own."""
        title = [sys.executable, "-m", "orchestrator.agent", cwd]

        def become(connection: socket.socket) -> None:
            # Before anything else: what ends this session finds its processes by a variable, too.
            _clean_up()
            os.environ.clear()
            process_title.overwrite(title, env)
            os.environ.update(env)
            os.setsid()
            if os.fork():
                os._exit(0)
            _wait_to_go(connection)
            atexit._clear()  # What Ray has asked for.
            detach.settle(cwd)
            sys.argv = title[2:]
            agent_main.main()

        return become


def _wait_to_go(connection: socket.socket) -> None:
    """Tell who asked that this process is there; end unless it is still wanted."""
    connection.settimeout(PATIENCE_S)
    try:
        connection.sendall(str(os.getpid()).encode())
        wanted = connection.recv(len(GO)) == GO
    except OSError:
        wanted = False
    if not wanted:
        os._exit(1)


def _raylet() -> list[int]:
    """A descriptor that is readable once the raylet has ended; empty where there is none to be watched."""
    pid = os.environ.get(_RAYLET, "")
    if not pid.isdigit():
        return []
    try:
        return [os.pidfd_open(int(pid))]
    except ProcessLookupError:
        raise RuntimeError("the raylet has ended already") from None
    except OSError as error:
        log.warning("the raylet cannot be watched: %s", error)
        return []


def _import_all() -> None:
    before = os.environ.get(_BLAS)
    os.environ[_BLAS] = "1"  # NumPy's library would start threads.
    for name in WANTED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            log.info("left out: %s", error)
    del os.environ[_BLAS]
    if before is not None:
        os.environ[_BLAS] = before


def settings(env: Mapping[str, str]) -> dict[str, str]:
    """What Ray's library and Python read when they are loaded."""
    return {name: value for name, value in env.items() if name.startswith(_SETTINGS)}


def _live(become: Callable[[], None]) -> NoReturn:
    """Run to the end and end as Python does, but without the frames of the template, which belong to it."""
    code = 1
    try:
        try:
            become()
            code = 0
        finally:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  the edge of a process
        sys.excepthook(*sys.exc_info())
    finally:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)


def _clean_up() -> None:
    """Take back what the template has set for itself."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)


def _adopt(env: Mapping[str, str]) -> None:
    """Change as little as possible: Ray finds its title's place in memory by its first variables."""
    for name in os.environ.keys() - env.keys():
        del os.environ[name]
    for name, value in env.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _mark_as_worker(env: Mapping[str, str]) -> None:
    """Ray has marked the process that it started, as one that goes early when memory runs out."""
    with contextlib.suppress(OSError):  # Some systems do not let it; Ray goes on there, too.
        Path("/proc/self/oom_score_adj").write_text(env.get(_OOM, "1000"))


def _receive(connection: socket.socket, descriptors: list[int]) -> bytes:
    """One message; ValueError for anything else."""
    message = b""
    while len(message) < SIZE.size or len(message) - SIZE.size < SIZE.unpack_from(message)[0]:
        data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        descriptors += fds
        message += data
        if not data or len(message) > _MOST_BYTES:
            raise ValueError("not a whole message")
    return message[SIZE.size :]


def _check_user(connection: socket.socket) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid = struct.unpack("3i", credentials)[1]
    if uid not in (os.getuid(), 0):
        raise PermissionError(f"user {uid} may not ask")


def _try_to_say(connection: socket.socket, text: str) -> None:
    try:
        connection.sendall(text.encode(errors="replace")[:4000])
    except OSError as error:
        log.info("nobody listens any more: %s", error)


def main() -> int:
    """Serve."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    path = Path(sys.argv[1])
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        if _locked(lock.fileno()):
            Template(path, worker_program()).serve()
    return 0


def _locked(descriptor: int) -> bool:
    """Whether this is the only template. Who looks whether there is one holds the lock for an instant."""
    deadline = SYSTEM.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if SYSTEM.monotonic() > deadline:
                return False  # Another one is about to be there.
        SYSTEM.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
