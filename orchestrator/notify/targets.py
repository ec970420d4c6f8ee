"""Whom to tell, in a file that only its owner can read.

The addresses contain passwords and tokens. They are here and in what is handed to the sending process;
nothing else, no error message either, ever contains one.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from orchestrator.domain.notice import USUAL, NoticeKind
from orchestrator.errors import ConflictError, NotFoundError, SetupError
from orchestrator.settings import write_private
from orchestrator.store.posix import sync_folder

_HEADER: Final = (
    "# Whom the controller tells of what happens. The addresses are secrets: keep this file to yourself.\n"
)
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+]{1,20})://", re.ASCII)
_WITH_HOST: Final = re.compile(
    r"(?:jsons?|xmls?|forms?|mailtos?|mmosts?|gotifys?|rockets?|apprises?)://(?:[^/?#]*@)?([\w.\-:\[\]]+)",
    re.ASCII,
)
"""Services of which the part after `://` is a computer's name. Of others it is a token, or half of one."""
_NTFY: Final = re.compile(r"ntfys?://(?:[^/?#]*@)?([\w.\-:\[\]]+)/\w", re.ASCII)


class Target(BaseModel):
    """One place to tell things to."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    url: Annotated[str | None, Field(repr=False, min_length=1, max_length=4000)] = None
    """Address as Apprise writes it, such as `ntfy://…`; this or `url_env`."""
    url_env: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    """Variable of the controller's environment that has the address."""
    on: tuple[NoticeKind, ...] = USUAL
    runs: tuple[str, ...] = ()
    """Only runs with such names, as in `lr-*`; all where empty."""
    experiments: tuple[str, ...] = ()
    """Only of such experiments; all where empty."""

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("give either url or url_env")
        return self

    def wants(self, kind: NoticeKind, name: str, experiment: str) -> bool:
        """Whether it is told of this."""
        return kind in self.on and _matches(name, self.runs) and _matches(experiment, self.experiments)

    def address(self, environ: Mapping[str, str] | None = None) -> str:
        """Its secret address. SetupError where the variable is not set."""
        if self.url is not None:
            return self.url
        assert self.url_env is not None
        found = (os.environ if environ is None else environ).get(self.url_env, "").strip()
        if not found:
            raise SetupError(
                f"{self.url_env} is not set in the controller's environment",
                remedy=f"set it where `orch up` runs and restart, or give the address itself: "
                f"`orch notify rm {self.name}`, `orch notify add --name {self.name}`",
            )
        return found

    @property
    def shown(self) -> str:
        """Its address without what is secret about it."""
        return f"${self.url_env}" if self.url is None else masked(self.url)


def masked(url: str) -> str:
    """An address without what is secret about it: the service, and the computer where that is known to be
    one."""
    scheme = _SCHEME.match(url)
    if scheme is None:
        return "…"
    host = _WITH_HOST.match(url) or _NTFY.match(url)
    return f"{scheme[1]}://{host[1]}/…" if host else f"{scheme[1]}://…"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


_LIST: Final = TypeAdapter(tuple[Target, ...])


class TargetFile:
    """The file. A change that returned is on disk; the file may be edited by hand, too. Safe to use from
    several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: tuple[tuple[int, int, int, int], tuple[Target, ...]] | None = None

    def read(self) -> tuple[Target, ...]:
        """All targets; none where there is no file. SetupError where others can read it, or nobody can."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return ()
        version = (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)
        if self._known is None or self._known[0] != version:
            self._known = (version, self._parse())
        return self._known[1]

    def add(self, target: Target) -> None:
        """Add one; ConflictError where the name is taken."""
        with self._lock:
            there = self.read()
            if any(one.name == target.name for one in there):
                raise ConflictError(
                    f"there is a target called {target.name}",
                    remedy=f"choose another --name, or `orch notify rm {target.name}` first",
                )
            self._write([*there, target])

    def remove(self, name: str) -> Target:
        """Take one away; NotFoundError names those there are."""
        with self._lock:
            there = self.read()
            gone = pick(there, [name])[0]
            self._write([one for one in there if one.name != name])
        return gone

    def _write(self, targets: Sequence[Target]) -> None:
        plain = [one.model_dump(mode="json", exclude_defaults=True) for one in targets]
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain else "[]\n"
        write_private(self._path, _HEADER + text)
        sync_folder(self._path.parent)

    def _parse(self) -> tuple[Target, ...]:
        try:
            with self._path.open(encoding="utf-8") as file:
                self._check(os.fstat(file.fileno()))
                plain = yaml.safe_load(file)
            targets = _LIST.validate_python(_with_on(plain) or ())
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"{self._path} cannot be read ({type(error).__name__})") from None
        except yaml.YAMLError as error:  # its own message quotes the file
            mark = getattr(error, "problem_mark", None)
            where = f":{mark.line + 1}" if mark is not None else ""
            raise SetupError(f"{self._path}{where} is not YAML") from None
        except ValidationError as error:
            raise SetupError(f"{self._path}: {_problems(error)}", remedy="see docs/notify.md") from None
        names = [one.name for one in targets]
        if len(set(names)) < len(names):
            raise SetupError(f"{self._path}: two targets have the same name")
        return targets

    def _check(self, found: os.stat_result) -> None:
        if found.st_uid != os.geteuid():
            raise SetupError(f"{self._path} belongs to somebody else", remedy="remove it")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise SetupError(
                f"others can read {self._path}, which has secrets in it, so it is not used",
                remedy=f"chmod 600 {self._path}, and change the tokens that somebody may have seen",
            )


def pick(targets: Sequence[Target], names: Sequence[str]) -> list[Target]:
    """Those with these names; NotFoundError names those there are."""
    by_name = {one.name: one for one in targets}
    for name in names:
        if name not in by_name:
            known = f"there are: {', '.join(by_name)}" if by_name else "there are none"
            raise NotFoundError(f"no target is called {name}", remedy=known)
    return [by_name[name] for name in names]


def free_name(targets: Sequence[Target], url: str | None) -> str:
    """A name for a new target, from its service."""
    scheme = _SCHEME.match(url or "")
    base = re.sub(r"[^a-z0-9]", "", scheme[1]) if scheme else "target"
    taken = {one.name for one in targets}
    return next(name for name in (base, *(f"{base}-{n}" for n in range(2, 10_000))) if name not in taken)


def _with_on(plain: Any) -> Any:
    """YAML 1.1 takes a bare `on` for the value true."""
    if not isinstance(plain, list):
        return plain
    return [
        {"on" if key is True else key: value for key, value in one.items()} if isinstance(one, dict) else one
        for one in plain
    ]


def _problems(error: ValidationError) -> str:
    """What is wrong and where, without the values."""
    details: list[Any] = list(error.errors(include_input=False, include_url=False))
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in details)
