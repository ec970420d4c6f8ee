"""What this machine has: processors, GPUs, memory, addresses and free ports."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from orchestrator.agent import ports
from orchestrator.errors import SetupError

_MEMORY_SHARE = 0.9
"""Share of main memory that nodes offer to runs; the rest is for Ray, MLflow, and whoever sits there."""


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def memory() -> int:
    """Bytes of main memory to share out among nodes; a container's limit counts."""
    limits = [psutil.virtual_memory().total]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(file).read_text().strip() if Path(file).exists() else ""
        if text.isdigit():
            limits.append(int(text))
    return int(min(limits) * _MEMORY_SHARE)


def gpus(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that may be used, as CUDA_VISIBLE_DEVICES would list them."""
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))
    return tuple(str(number) for number in range(len(gpu_names())))


def gpu_names() -> list[str]:
    """One line for each NVIDIA GPU, as `nvidia-smi -L` prints it; empty where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired as error:
        raise SetupError(
            "nvidia-smi does not answer", remedy="Restart the machine, or set CUDA_VISIBLE_DEVICES."
        ) from error
    return [line for line in done.stdout.splitlines() if line.startswith("GPU ")]


def loopback(stack: str, number: int) -> str:
    """A loopback address for the `number`-th Ray node of this stack.

    Ray replaces 127.0.0.1 by an outward address; others it takes. Each stack has a range of its own, so
    that several can run side by side.
    """
    first, second = int(stack[:2], 16), int(stack[2:4], 16)
    return f"127.{16 + first % 224}.{second}.{1 + number}"


def local_address(target: str) -> str:
    """The address of this machine from which `target` is reached. Nothing is sent."""
    try:
        info = socket.getaddrinfo(target, 9, socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(info[0][4])
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SetupError(f"there is no way from here to {target}: {error}") from error


def check_own_address(address: str) -> str:
    """The address itself. SetupError where it is no IPv4 address of this machine that others can name."""
    remedy = "Give the address under which the other machines reach this one, such as 192.168.1.20."
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError as error:
        raise SetupError(f"{address} is not an IPv4 address", remedy=remedy) from error
    if parsed.is_unspecified or parsed.is_multicast:
        raise SetupError(f"{address} is not an address that other machines can reach", remedy=remedy)
    if not ports.bindable(address, 0):
        raise SetupError(f"{address} is not an address of this machine", remedy=remedy)
    return address


def listening_ports(pid: int) -> set[int]:
    """Ports that a process of ours listens on; empty where it has ended."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return set()
    return {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN and c.laddr}


def port_holder(port: int) -> str:
    """Who listens on a port, in words."""
    for connection in psutil.net_connections("tcp"):
        address = connection.laddr
        if connection.status != psutil.CONN_LISTEN or not address or address.port != port:
            continue
        if connection.pid is None:
            break
        try:
            command = " ".join(psutil.Process(connection.pid).cmdline())
        except psutil.Error:
            command = "?"
        return f"process {connection.pid} ({command[:120]})"
    return "a process of another user"
