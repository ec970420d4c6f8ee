"""The template of a node: a process that has imported what workers and agents need, and forks them.

``python -P -m orchestrator.cluster.template SOCKET``. One for each node, in the session of its service; the
first worker that finds none starts it. A Ray worker and an agent cost a second of processor time when each
imports everything itself, and a fork costs some milliseconds; they also share the template's memory. Nothing
depends on it: where it does not answer, both start by themselves.

The template stays single-threaded, because a fork copies only the thread that makes it: locks that others
held would stay locked in the child for ever. It holds no connection to Ray and does nothing but fork.

Ray's library reads its settings when it is loaded, the number of the driver's job among them. So a template
makes workers only for the settings that it has itself. Asked for others, after the controller has another
driver for instance, it refuses and ends, and the next one has those.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import logging
import os
import signal
import socket
import struct
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

from orchestrator.agent import __main__ as agent_main
from orchestrator.agent import detach
from orchestrator.agent.template import AGENT, WORKER, taken_apart
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
READ_S: Final = 5.0
_BLAS: Final = "OPENBLAS_NUM_THREADS"
_LOOK_S: Final = 30.0
_BACKLOG: Final = 64


class Template:
    """Answers on one socket until the socket's file is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._settings = ray_settings(os.environ)
        self._outdated = False
        _import_all()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        program = worker_program()
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
        temporary = self._path.with_name(self._path.name + ".new")
        temporary.unlink(missing_ok=True)
        self._socket.bind(str(temporary))
        self._socket.listen(_BACKLOG)
        temporary.rename(self._path)  # Whoever sees it can connect.
        while self._path.exists() and not self._outdated:
            self._socket.settimeout(_LOOK_S)
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            connection.settimeout(READ_S)
            _check_user(connection)
            kind, argv, env, cwd = taken_apart(_receive(connection, descriptors))
            make = {WORKER: self._make_worker, AGENT: self._make_agent}[kind]
            connection.sendall(str(make(argv, env, cwd, descriptors)).encode())
        except Exception as error:  # whatever was asked: the next one may be in order
            log.exception("a request failed")
            _try_to_say(connection, f"{type(error).__name__}: {error}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _make_worker(self, argv: list[str], env: dict[str, str], cwd: str, descriptors: list[int]) -> int:
        """A worker of Ray, in this session, as a child of this process."""
        if ray_settings(env) != self._settings:
            self._outdated = True
            self._path.unlink(missing_ok=True)
            raise ValueError("the worker is for other settings of Ray")
        return _fork(lambda: self._become_worker(argv, env, cwd, descriptors))

    def _become_worker(self, argv: list[str], env: dict[str, str], cwd: str, descriptors: list[int]) -> None:
        os.setpgid(0, 0)  # Ray ends the group of a worker that ends.
        os.chdir(cwd)
        _clean_up()
        _adopt(env)
        for target, source in enumerate(descriptors):
            os.dup2(source, target)
        os.closerange(3, 256)
        sys.argv = [self._program, *argv]
        main = types.ModuleType("__main__")
        main.__file__ = self._program
        sys.modules["__main__"] = main
        exec(self._worker, main.__dict__)

    def _make_agent(self, argv: list[str], env: dict[str, str], cwd: str, descriptors: list[int]) -> int:
        """An agent, forked twice, in a session of its own; its id."""
        reading, writing = os.pipe()
        _fork(lambda: self._detach_agent(cwd, env, writing))
        os.close(writing)
        with os.fdopen(reading) as told:
            return int(told.read())

    def _detach_agent(self, work_dir: str, env: dict[str, str], told: int) -> None:
        # Before anything else: what ends this session finds its processes by a variable, too.
        title = [sys.executable, "-m", "orchestrator.agent", work_dir]
        _clean_up()
        os.environ.clear()
        process_title.overwrite(title, env)
        os.environ.update(env)
        os.setsid()
        child = os.fork()
        if child:
            os.write(told, str(child).encode())
            os._exit(0)
        detach.settle(work_dir)
        sys.argv = title[2:]
        agent_main.main()


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


def ray_settings(env: Mapping[str, str]) -> dict[str, str]:
    """What Ray's library reads when it is loaded."""
    return {name: value for name, value in env.items() if name.startswith("RAY_")}


def _fork(become: Callable[[], None]) -> int:
    """The child's id. The child never returns from here."""
    child = os.fork()
    if child == 0:
        _live(become)
    return child


def _live(become: Callable[[], None]) -> NoReturn:
    """Run to the end and end, without whatever the template itself would do at its end."""
    code = 1
    try:
        become()
        code = 0
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


def _receive(connection: socket.socket, descriptors: list[int]) -> bytes:
    parts: list[bytes] = []
    while True:
        data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        descriptors += fds
        if not data:
            return b"".join(parts)
        parts.append(data)


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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0  # Another one is about to be there.
        Template(path).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
