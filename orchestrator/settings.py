"""Where things are on this machine: one state folder, and what environment variables change about it.

=======================  =========================================================================
``ORCH_HOME``            the state folder; a folder of the user's data directory when unset
``ORCH_URL``             address of the controller; ``ORCH_HOME/client.json`` when unset
``ORCH_TOKEN``           the bearer token; ``ORCH_TOKEN_FILE``, then ``ORCH_HOME/token`` when unset
``ORCH_NODE_HOME``       on a node: the folder of this node, set by the node's supervisor
``ORCH_DATA_DIR``        where to look for training text before it is downloaded
``ORCH_UPLOAD_LIMIT``    bytes per second to the object store at most, as in ``2MB/s``; none when unset
``ORCH_DOWNLOAD_LIMIT``  the same from it
``ORCH_CACHE_SIZE``      bytes of checkpoints that a node keeps at most, as in ``10GB``; ``0`` for none;
                         10 GB or a tenth of the disk when unset, whichever is less
``ORCH_SHARE_COMPILED``  ``1`` on a node that takes compiled steps from the object store and puts its own
                         there; they are native code: whoever can write to the store can run code on it
``ORCH_UPGRADE_REST``    seconds that an attempt stays where it began before it may be moved to a better
                         placement; of the controller, 60 when unset
``ORCH_WINDOW_GRACE``    seconds before the end of a run's window at which it is told to save; nothing starts
                         in the last two times as many; of the controller, 60 when unset
``ORCH_PIN_CPUS``        ``0`` on a node that lets programs run on any processor; otherwise each keeps to as
                         many as it was granted, which no other run has
``ORCH_CPU_WATTS``       of a node: watts of a busy processor, where energy cannot be measured; 5 when unset
``ORCH_GPU_WATTS``       the same of a GPU that was granted; 200 when unset
``ORCH_CPU_REGISTER``    folder where runs note their processors; containers that share a machine's processors
                         have to share it; ``/dev/shm`` when unset
``ORCH_CACHE_DIR``       where the trainer keeps them and other things; the user's cache when unset
=======================  =========================================================================

Limits hold for each process by itself. A node takes them from the environment of the `orch up` or `orch join`
that started it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from orchestrator.errors import SetupError

_UNITS: Final = {
    **{"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40},
    **{"kbit": 125.0, "Mbit": 125e3, "Gbit": 125e6},
}
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)(/s)?", re.ASCII)
_LEAST_RATE: Final = 1000.0


@dataclass(frozen=True)
class Home:
    """The state folder's layout. Nothing else joins paths below it."""

    root: Path

    @property
    def token_file(self) -> Path:
        """The bearer token, mode 0600."""
        return self.root / "token"

    @property
    def notify_file(self) -> Path:
        """Whom the controller tells of what happens, with their secret addresses; mode 0600."""
        return self.root / "notify.yaml"

    @property
    def client_file(self) -> Path:
        """Address of the controller, for the command line: ``{"url": …}``."""
        return self.root / "client.json"

    @property
    def stack_file(self) -> Path:
        """What `orch up` was asked to run."""
        return self.root / "stack.json"

    @property
    def state_file(self) -> Path:
        """Which services run, as the supervisor last saw them."""
        return self.root / "state.json"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.root / "supervisor.lock"

    @property
    def setup_lock(self) -> Path:
        """Held while `orch up`, `down`, `join` or `leave` changes something here."""
        return self.root / "setup.lock"

    @property
    def empty(self) -> Path:
        """Working directory of services; empty, because Ray puts it on the path of its workers."""
        return self.root / "empty"

    @property
    def nodes(self) -> Path:
        """Folders of this machine's nodes."""
        return self.root / "nodes"

    @property
    def controller(self) -> Path:
        """Ledger, points and logs of the controller."""
        return self.root / "controller"

    @property
    def ledger_file(self) -> Path:
        """SQLite ledger."""
        return self.controller / "ledger.db"

    @property
    def tariff_file(self) -> Path:
        """What electricity costs."""
        return self.controller / "tariff.json"

    @property
    def drains_file(self) -> Path:
        """Which nodes are being drained."""
        return self.controller / "draining.json"

    @property
    def points_file(self) -> Path:
        """SQLite spool of metric points."""
        return self.controller / "points.db"

    @property
    def run_logs(self) -> Path:
        """Output of programs, ``<run>/a<n>.log``."""
        return self.controller / "runs"

    @property
    def mlflow(self) -> Path:
        """Database and artifacts of the MLflow server."""
        return self.root / "mlflow"

    @property
    def store(self) -> Path:
        """The default object store."""
        return self.root / "store"

    @property
    def service_logs(self) -> Path:
        """Output of the services that `orch up` started."""
        return self.root / "logs"

    def node(self, name: str) -> Path:
        """Folder of one node: token, settings, work of its attempts."""
        return self.nodes / name


def home(environ: dict[str, str] | None = None) -> Home:
    """The state folder of this process."""
    env = os.environ if environ is None else environ
    root = env.get("ORCH_HOME") or platformdirs.user_state_dir("orch")
    return Home(Path(root).expanduser().absolute())


def rate(name: str, environ: Mapping[str, str] | None = None) -> float | None:
    """Bytes per second that an environment variable allows; None where it is unset or empty.

    SetupError where it does not say ``2MB/s``, ``500kB/s``, ``1.5MiB/s``, ``20Mbit/s`` or the like, or less
    than 1 kB/s.
    """
    text = (os.environ if environ is None else environ).get(name, "").strip()
    if not text:
        return None
    amount = _amount(text, per_second=True)
    if amount is None or amount < _LEAST_RATE:
        raise SetupError(
            f"{name} is {text!r}, which is no number of bytes per second",
            remedy=f"Write {name}=2MB/s, 1.5MiB/s or 20Mbit/s, at least 1kB/s; unset it for no limit.",
        )
    return amount


def size(name: str, environ: Mapping[str, str] | None = None) -> int | None:
    """Bytes that an environment variable allows; None where it is unset or empty.

    SetupError where it does not say ``10GB``, ``500MiB`` or the like, or ``0``.
    """
    text = (os.environ if environ is None else environ).get(name, "").strip()
    if not text:
        return None
    amount = 0.0 if text == "0" else _amount(text, per_second=False)
    if amount is None:
        raise SetupError(
            f"{name} is {text!r}, which is no number of bytes", remedy=f"Write {name}=10GB, 500MiB or 0."
        )
    return int(amount)


def seconds(name: str, default: float, environ: Mapping[str, str] | None = None) -> float:
    """A number of seconds; `default` where it is unset or empty. SetupError where it is no number."""
    text = (os.environ if environ is None else environ).get(name, "").strip()
    if not re.fullmatch(r"(\d{1,9}(\.\d{1,3})?)?", text, re.ASCII):
        raise SetupError(f"{name} is {text!r}, which is no number of seconds", remedy=f"Write {name}=60.")
    return float(text) if text else default


def watts(name: str, default: float, environ: Mapping[str, str] | None = None) -> float:
    """A number of watts; `default` where it is unset or empty. SetupError where it is no number."""
    text = (os.environ if environ is None else environ).get(name, "").strip()
    if not re.fullmatch(r"(\d{1,5}(\.\d{1,3})?)?", text, re.ASCII):
        raise SetupError(
            f"{name} is {text!r}, which is no number of watts", remedy=f"Write {name}={default:g}."
        )
    return float(text) if text else default


def flag(name: str, environ: Mapping[str, str] | None = None, *, default: bool = False) -> bool:
    """Whether an environment variable is ``1``; the default where it is empty or unset.

    SetupError where it is neither that nor ``0``.
    """
    text = (os.environ if environ is None else environ).get(name, "").strip()
    if text not in ("", "0", "1"):
        raise SetupError(f"{name} is {text!r}", remedy=f"Write {name}=1 or {name}=0.")
    return text == "1" if text else default


def _amount(text: str, *, per_second: bool) -> float | None:
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2] not in _UNITS or bool(found[3]) is not per_second:
        return None
    return float(found[1]) * _UNITS[found[2]]


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
