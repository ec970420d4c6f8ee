"""When a node's owner needs it: the rules, a file of the node, and the judgement with its patience.

The rules of a node are in ``nodes/NAME/owner.json``. `orch owner` writes it, and the supervisor follows it
within seconds, without a restart of anything. Where there is no file, the defaults hold: only a GPU that
others keep busy is a reason, because whoever tries things out on a laptop is logged in, and often on battery.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.cluster.config import load_config
from orchestrator.errors import NotFoundError, SetupError
from orchestrator.settings import Home, write_private
from orchestrator.spec.values import Seconds

FILE: Final = "owner.json"
ProcessName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^/\x00-\x1f]+$")]


class OwnerRules(BaseModel):
    """What counts as use by the owner, and what follows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    gpu: Annotated[float, Field(gt=0, le=1)] | None = 0.3
    """Share of the time in which programs that are not ours keep every GPU of the node busy; None: no
    reason."""
    gpu_for: Seconds = 30.0
    """How long they have to do that without a pause."""
    processes: Annotated[tuple[ProcessName, ...], Field(max_length=100)] = ()
    """Programs, such as games, that mean that the owner wants the machine while they run."""
    login: Seconds | None = None
    """A login session counts while its last input is younger than this; None: no reason."""
    battery: bool = False
    """Whether to stay away while the machine is not plugged in."""
    yields: bool = True
    """Whether what runs there saves and goes, or only nothing new starts."""
    quiet: Seconds = 120.0
    """For how long every reason has to be gone until the node is used again."""


def load_rules(node_home: Path) -> OwnerRules:
    """The rules of a node, from its folder; SetupError where its file cannot be understood."""
    file = node_home / FILE
    try:
        return OwnerRules.model_validate_json(file.read_text())
    except FileNotFoundError:
        return OwnerRules()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SetupError(
            f"{file} cannot be understood: {where}: {first['msg']}",
            remedy="Set the rules again with `orch owner`, or remove the file.",
        ) from error


def save_rules(node_home: Path, rules: OwnerRules) -> None:
    """Write them, whole or not at all."""
    write_private(node_home / FILE, rules.model_dump_json(indent=1) + "\n")


def change_rules(home: Home, node: str | None, changes: Mapping[str, Any]) -> dict[str, OwnerRules]:
    """The rules of this machine's nodes by name, with `changes`; of `node` alone where it is given.

    SetupError where this machine has no node, or a value is wrong; NotFoundError where it has no such node.
    Then nothing is changed.
    """
    config = load_config(home)
    names = [found.name for found in config.nodes] if config else []
    if not names:
        raise SetupError(
            "this machine has no node", remedy="Start one with `orch up`, or join with `orch join`."
        )
    if node is not None and node not in names:
        raise NotFoundError(f"no node of this machine is called {node}", remedy=f"It has {', '.join(names)}.")
    chosen = [node] if node is not None else names
    rules = {name: _changed(load_rules(home.node(name)), changes) for name in chosen}
    for name in chosen if changes else ():
        save_rules(home.node(name), rules[name])
    return rules


def _changed(rules: OwnerRules, changes: Mapping[str, Any]) -> OwnerRules:
    try:
        return OwnerRules.model_validate({**rules.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-").replace("processes", "process")
        text = first["msg"].removeprefix("Value error, ")
        raise SetupError(f"{option}: {text}", remedy="See `orch owner --help`.") from error


@dataclass(frozen=True)
class Seen:
    """What was seen of the owner just now. What could not be read is as if it were not there."""

    gpu_use: tuple[float, ...] = ()
    """Of each GPU of the node, the share of time in which others keep it busy."""
    processes: tuple[str, ...] = ()
    """Those of the listed programs that run."""
    people: tuple[str, ...] = ()
    """Who has a login session with recent input."""
    battery: bool = False


class OwnerWatch:
    """Decides from what is seen, one look after another, whether the owner needs the node."""

    def __init__(self) -> None:
        self._gpu_since: float | None = None
        self._until = -math.inf
        self._was = ""

    def judge(self, rules: OwnerRules, seen: Seen, now: float) -> str:
        """Why the node is in use, in words; empty where it is free.

        `now` is in seconds of a clock that goes on while the machine is suspended: a night of sleep is quiet.
        It becomes busy with the first sign, for GPUs after `gpu_for`, and free after `quiet` without any.
        """
        lasted = self._gpu_lasted(rules, seen, now)
        signs = _signs(rules, seen, gpu=lasted is not None and lasted >= rules.gpu_for)
        if signs:
            self._was = ", ".join(signs.values())
            self._until = now + rules.quiet
            return ", ".join(signs)
        if now < self._until:
            if lasted is not None:
                self._until = now + rules.quiet
            return f"{self._was} a moment ago"
        return ""

    def _gpu_lasted(self, rules: OwnerRules, seen: Seen, now: float) -> float | None:
        """For how long the GPUs have been busy without a pause; None where they are not."""
        limit = rules.gpu
        if limit is None or not seen.gpu_use or min(seen.gpu_use) < limit:
            self._gpu_since = None
            return None
        if self._gpu_since is None:
            self._gpu_since = now
        return now - self._gpu_since


def _signs(rules: OwnerRules, seen: Seen, gpu: bool) -> Mapping[str, str]:
    """What is -> what one says of it when it is over. Without numbers, so that it stays the same text."""
    signs: dict[str, str] = {}
    for name in seen.processes:
        signs[f"{name} is running"] = f"{name} was running"
    if gpu:
        signs["other programs keep its GPU busy"] = "other programs kept its GPU busy"
    if rules.login is not None:
        for person in seen.people:
            signs[f"{person} is at work there"] = f"{person} was at work there"
    if rules.battery and seen.battery:
        signs["it is on battery"] = "it was on battery"
    return signs
