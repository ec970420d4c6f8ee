"""How to ask this node's template for a process. See :mod:`orchestrator.cluster.template`, which answers.

Imported by a script that must start within milliseconds: only modules that Python has built in, or nearly.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Mapping, Sequence
from struct import pack
from typing import Final

VARIABLE: Final = "ORCH_TEMPLATE"
"""Environment variable with the path of the template's socket."""
WORKER: Final = "worker"
AGENT: Final = "agent"
PATIENCE_S: Final = 10.0
_AT_ONCE: Final = 1 << 16


class TemplateError(Exception):
    """There is no template, or it has refused: no process was made, and a slow start is in order."""


class NoAnswerError(Exception):
    """The template was asked and did not answer: the process may have been made, so start no second one."""


def ask(
    path: str,
    kind: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    descriptors: Sequence[int] = (),
) -> int:
    """Have a process made; its id. It gets copies of these descriptors as 0, 1, 2.

    Raises TemplateError where no process was made, NoAnswerError where nobody can say.
    """
    words = [kind, cwd, str(len(argv)), *argv, *(f"{name}={value}" for name, value in env.items())]
    message = "\0".join(words).encode(errors="surrogateescape")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE_S)
        try:
            connection.connect(path)
        except OSError as error:
            raise TemplateError(f"no template at {path}: {error}") from error
        try:
            answer = _exchange(connection, message, descriptors)
        except OSError as error:
            raise NoAnswerError(f"the template at {path} does not answer: {error}") from error
    finally:
        connection.close()
    if answer.isdigit():
        return int(answer)
    if answer:
        raise TemplateError(f"the template made no process: {answer.decode(errors='replace')}")
    raise NoAnswerError(f"the template at {path} has ended")


def _exchange(connection: _socket.socket, message: bytes, descriptors: Sequence[int]) -> bytes:
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"{len(descriptors)}i", *descriptors))]
    sent = connection.sendmsg([message[:_AT_ONCE]], rights if descriptors else [])
    connection.sendall(message[sent:])
    connection.shutdown(_socket.SHUT_WR)
    return connection.recv(4096)


def taken_apart(message: bytes) -> tuple[str, list[str], dict[str, str], str]:
    """Kind, arguments, environment and folder from what :func:`ask` sent; ValueError for anything else."""
    kind, cwd, count, *rest = message.decode(errors="surrogateescape").split("\0")
    number = int(count)
    env = dict(entry.split("=", 1) for entry in rest[number:])
    return kind, rest[:number], env, cwd


def own_template() -> str | None:
    """The socket of the template of the node that this process belongs to."""
    return os.environ.get(VARIABLE)
