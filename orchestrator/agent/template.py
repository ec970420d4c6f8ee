"""How to ask this node's template for a process. See :mod:`orchestrator.cluster.template`, which answers.

A request is made once or not at all: the new process tells its id and does nothing until it is told to go on.
Whoever asks and hears nothing closes the connection; then the process, if there is one, ends.

Imported by a script that must start within milliseconds: only modules that Python has built in, or nearly.
"""

from __future__ import annotations

import _socket
import os
from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # Importing these would take a third of the time that the script has.
    from collections.abc import Mapping, Sequence
    from typing import Final

VARIABLE: Final = "ORCH_TEMPLATE"
"""Environment variable with the path of the template's socket."""
WORKER: Final = "worker"
AGENT: Final = "agent"
GO: Final = b"go"
PATIENCE_S: Final = 5.0
SIZE: Final = Struct("!I")
"""Length of the message that follows it."""
_DESCRIPTOR: Final = Struct("i")
_AT_ONCE: Final = 1 << 16


class TemplateError(Exception):
    """No process was made: there is no template, or it cannot or will not. A slow start is in order."""


def ask(
    path: str,
    kind: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    descriptors: Sequence[int] = (),
) -> int:
    """Have a process made; its id. It gets copies of these descriptors as 0, 1, 2.

    Raises TemplateError where no process was made.
    """
    words = [kind, cwd, str(len(argv)), *argv, *(f"{name}={value}" for name, value in env.items())]
    message = "\0".join(words).encode(errors="surrogateescape")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE_S)
        connection.connect(path)
        return _agree(connection, SIZE.pack(len(message)) + message, descriptors)
    except OSError as error:
        raise TemplateError(f"no template at {path}: {error}") from error
    finally:
        connection.close()


def _agree(connection: _socket.socket, message: bytes, descriptors: Sequence[int]) -> int:
    packed = b"".join(map(_DESCRIPTOR.pack, descriptors))
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if descriptors else []
    sent = connection.sendmsg([message[:_AT_ONCE]], rights)
    if sent < len(message):  # sending nothing fails, too, where it has answered and gone
        connection.sendall(message[sent:])
    answer = connection.recv(4096)
    if not answer.isdigit():
        raise TemplateError(answer.decode(errors="replace") or "the process ended before it began")
    connection.sendall(GO)
    return int(answer)


def taken_apart(message: bytes) -> tuple[str, list[str], dict[str, str], str]:
    """Kind, arguments, environment and folder from what :func:`ask` sent; ValueError for anything else."""
    kind, cwd, count, *rest = message.decode(errors="surrogateescape").split("\0")
    number = int(count)
    env = dict(entry.split("=", 1) for entry in rest[number:])
    return kind, rest[:number], env, cwd


def own_template() -> str | None:
    """The socket of the template of the node that this process belongs to."""
    return os.environ.get(VARIABLE)
