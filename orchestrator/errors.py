"""Every error a user can meet.

::

    OrchError
    ├── SpecError              the spec (or another input file) is wrong; carries every problem found
    ├── NotFoundError          no such run, checkpoint, node, experiment
    ├── ConflictError          the request contradicts what is already recorded
    ├── UnavailableError       a service cannot be reached
    ├── UnauthorizedError      the token is missing or wrong
    ├── SetupError             this machine is not set up for what was asked (port busy, package missing)
    └── StoreError             shared storage refused or lost something
        ├── FencedError        a newer attempt owns the run; this one must stop
        ├── DamagedError       stored data does not match its recorded size or SHA-256
        ├── StoreFullError     no space left
        └── StoreUnavailableError

The message says what happened; :attr:`OrchError.remedy` says what to do about it. :attr:`OrchError.exit_code`
is what the command line ends with.
"""

from __future__ import annotations

from dataclasses import dataclass


class OrchError(Exception):
    """Something went wrong in a way that a user can understand and mend."""

    exit_code = 1
    kind = "error"

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True)
class Problem:
    """One mistake in an input file. ``line`` and ``column`` count from 1; 0 where the place is unknown."""

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (where, self.key, self.message) if part)


class SpecError(OrchError):
    """The input is wrong. All problems are reported at once."""

    exit_code = 2
    kind = "spec"

    def __init__(self, problems: list[Problem], *, remedy: str | None = None) -> None:
        super().__init__("\n".join(str(problem) for problem in problems), remedy=remedy)
        self.problems = problems


class NotFoundError(OrchError):
    """What was named does not exist."""

    exit_code = 3
    kind = "not-found"


class ConflictError(OrchError):
    """The request contradicts what is recorded already."""

    exit_code = 4
    kind = "conflict"


class UnavailableError(OrchError):
    """A service cannot be reached."""

    exit_code = 5
    kind = "unavailable"


class UnauthorizedError(OrchError):
    """The token is missing or wrong."""

    exit_code = 6
    kind = "unauthorized"


class SetupError(OrchError):
    """This machine is not set up for what was asked."""

    exit_code = 7
    kind = "setup"


class StoreError(OrchError):
    """Shared storage refused or lost something."""

    exit_code = 8
    kind = "store"


class FencedError(StoreError):
    """A newer attempt owns the run; the caller must stop and may not commit."""

    kind = "fenced"


class DamagedError(StoreError):
    """Stored data does not match its recorded size or SHA-256."""

    kind = "damaged"


class StoreFullError(StoreError):
    """There is no space left in the store."""

    kind = "store-full"


class StoreUnavailableError(StoreError):
    """The store cannot be reached or read at the moment."""

    kind = "store-unavailable"


_BY_KIND: dict[str, type[OrchError]] = {
    cls.kind: cls
    for cls in (
        OrchError,
        NotFoundError,
        ConflictError,
        UnavailableError,
        UnauthorizedError,
        SetupError,
        StoreError,
        FencedError,
        DamagedError,
        StoreFullError,
        StoreUnavailableError,
    )
}


def from_kind(kind: str, message: str, remedy: str | None = None) -> OrchError:
    """Rebuild an error that travelled as ``kind`` and ``message``."""
    if kind == SpecError.kind:
        problems = [Problem("", 0, 0, "", line) for line in message.splitlines()]
        return SpecError(problems, remedy=remedy)
    return _BY_KIND.get(kind, OrchError)(message, remedy=remedy)
