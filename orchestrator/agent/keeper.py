"""Runs one program and makes sure that nothing of it outlives the agent. Run as a script: standard library
only.

The keeper is a small process between the agent and the program:

* The agent dies in any way, `kill -9` included: the pipe on stdin ends, and the keeper kills the program
  and all of its descendants with SIGKILL. SIGTERM would let the program save a checkpoint that nobody
  commits, while the machine may already be wanted for the next attempt.
* The keeper itself dies: the kernel kills the program (PR_SET_PDEATHSIG).
* Descendants that leave the program's process group stay children of the keeper (PR_SET_CHILD_SUBREAPER).

The agent writes one JSON line ``{"argv", "env", "cwd", "output", "cores"}``, then the words ``term`` and
``kill``, one a line. The keeper answers, one a line, ``pid N`` or ``failed TEXT``, then ``exit CODE``
(negative: the signal that ended it) when the program has ended and ``done`` when no descendant is left, and
ends. ``term`` goes to the program alone, as process managers do it: torch's data loaders die of a SIGTERM of
their own, and a shell that has ended leaves children, which get the next ``term``.
"""

import ctypes
import json
import os
import select
import signal

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_EVERY_S = 0.05

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve one program until nothing of it is left."""
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wake = _wake_on_child()
    agent = Lines(0)
    while not agent.lines and not agent.ended:
        agent.read()
    if agent.lines:
        Keeper(agent, wake).run(json.loads(agent.lines.pop(0)))


class Lines:
    """Whole lines from a pipe."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lines: list[bytes] = []
        self.ended = False
        self._rest = b""

    def read(self) -> None:
        """Take what is there; blocks where nothing is."""
        data = os.read(self.descriptor, 1 << 16)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += lines


class Keeper:
    """One program and its descendants."""

    def __init__(self, agent: Lines, wake: int) -> None:
        self._agent = agent
        self._wake = wake
        self._program = 0
        self._program_ended = False
        self._killing = False

    def run(self, what: dict) -> None:  # type: ignore[type-arg]
        """Start the program and follow it to its end."""
        try:
            self._program = _spawn(**what)
        except OSError as error:
            return _say(f"failed {error.strerror or error}")
        _say(f"pid {self._program}")
        while self._reap():
            self._obey()
            if self._killing:
                _send(_descendants(), signal.SIGKILL)
            self._wait()
        return _say("done")

    def _wait(self) -> None:
        waited = [self._wake] if self._agent.ended else [self._wake, self._agent.descriptor]
        ready, _, _ = select.select(waited, [], [], KILL_EVERY_S if self._killing else None)
        if self._wake in ready:
            os.read(self._wake, 4096)
        if self._agent.descriptor in ready:
            self._agent.read()

    def _obey(self) -> None:
        for word in self._agent.lines:
            if word == b"kill":
                self._killing = True
            elif word == b"term":
                _send(_descendants() if self._program_ended else [self._program], signal.SIGTERM)
        self._agent.lines.clear()
        self._killing = self._killing or self._agent.ended

    def _reap(self) -> bool:
        """Collect who has ended; False when no descendant is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._program and not self._program_ended:
                self._program_ended = True
                _say(f"exit {os.waitstatus_to_exitcode(status)}")


def _spawn(argv: list[str], env: dict[str, str], cwd: str, output: str, cores: list[int]) -> int:
    """The program's process id; OSError where it cannot be started."""
    keeper = os.getpid()
    problem, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become(argv, env, cwd, output, cores, keeper)
        except OSError as error:
            text = f"{error.errno or 0} {error.filename or argv[0]}: {error.strerror}"
            os.write(told, text.encode(errors="replace"))
        finally:
            os._exit(127)
    os.close(told)
    said = os.read(problem, 4096).decode(errors="replace")
    os.close(problem)
    if said:
        os.waitpid(child, 0)
        number, _, text = said.partition(" ")
        raise OSError(int(number), text)
    return child


def _become(
    argv: list[str], env: dict[str, str], cwd: str, output: str, cores: list[int], keeper: int
) -> None:
    os.setsid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:
        os._exit(127)
    signal.set_wakeup_fd(-1)
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGCHLD,
        signal.SIGPIPE,
        signal.SIGXFSZ,
    ):
        signal.signal(number, signal.SIG_DFL)
    _pin(cores)
    os.chdir(cwd)
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.execvpe(argv[0], argv, env)


def _pin(cores: list[int]) -> None:
    """Run on these processors only; on all where one of them is not there any more."""
    if cores:
        try:
            os.sched_setaffinity(0, cores)
        except OSError:
            return


def _descendants() -> list[int]:
    """Every process below this one."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            parent = _parent(name)
            if parent:
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _parent(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[1])


def _send(processes: list[int], number: int) -> None:
    for pid in processes:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _wake_on_child() -> int:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _say(text: str) -> None:
    """Tell the agent; nobody listens any more once it is dead."""
    try:
        os.write(1, f"{text}\n".encode())
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    main()
