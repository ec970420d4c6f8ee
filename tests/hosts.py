"""Hosts on one machine: a network namespace and a PID namespace each, joined by a bridge.

What runs in one cannot see the processes of another, and is cut off or ended like a real machine. Needs root
and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support import wait_until


def missing() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return None


@dataclass(frozen=True)
class Host:
    """One host; `init` is the process whose end ends everything on it."""

    name: str
    address: str
    init: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The first process inside the host's PID namespace, as this machine sees it."""
        children = f"/proc/{self.init.pid}/task/{self.init.pid}/children"
        with open(children) as file:
            return int(file.read().split()[0])

    def enter(self, argv: list[str]) -> list[str]:
        """The command, to be run on this host."""
        return ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount", "--", *argv]

    def power_off(self) -> None:
        """Everything on the host is gone at once."""
        self.init.kill()
        self.init.wait(10)


@contextmanager
def hosts(count: int, subnet: str = "10.77.31") -> Iterator[list[Host]]:
    """`count` hosts with addresses `subnet`.1 and up, which reach each other and nothing else."""
    tag = f"o{os.getpid() % 100000}"
    bridge = f"{tag}b"
    made: list[Host] = []
    _ip("link", "add", bridge, "type", "bridge")
    try:
        _ip("link", "set", bridge, "up")
        for number in range(1, count + 1):
            made.append(_make(f"{tag}n{number}", f"{tag}v{number}", bridge, f"{subnet}.{number}"))
        yield made
    finally:
        for host in made:
            host.power_off()
            _ip("netns", "delete", host.name)
        _ip("link", "delete", bridge)


def _make(name: str, link: str, bridge: str, address: str) -> Host:
    _ip("netns", "add", name)
    _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", link, "master", bridge)
    _ip("link", "set", link, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    # Bash as the first process, because it takes up the daemons that lose their parents.
    first = ["bash", "-c", "while :; do sleep 1; done"]
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *first]
    init = subprocess.Popen(["ip", "netns", "exec", name, *unshare], stdin=subprocess.DEVNULL)
    host = Host(name, address, init)
    wait_until(lambda: _has_child(init.pid), 10)
    return host


def _has_child(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return bool(file.read().strip())
    except FileNotFoundError:
        return False


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)
