"""Runs inside `ray start` (environment variable ``RAY_START_HOOK``), before anything is started."""

from __future__ import annotations

from typing import Any


def apply(params: Any, head: bool) -> None:
    """Leave out the Ray Client server: nobody uses it, and it costs 50 MB and a fixed port.

    The command line has no way to say so: `--ray-client-server-port` refuses 0 and defaults to 10001.
    """
    params.ray_client_server_port = None
