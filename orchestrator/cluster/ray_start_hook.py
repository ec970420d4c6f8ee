"""Runs inside `ray start` (environment variable ``RAY_START_HOOK``), before anything is started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from orchestrator.agent.template import VARIABLE


def apply(params: Any, head: bool) -> None:
    """Leave out the Ray Client server: nobody uses it, and it costs 50 MB and a fixed port.

    The command line has no way to say so: `--ray-client-server-port` refuses 0 and defaults to 10001.

    The workers of a node come from a template. They learn of it, and start it, by a variable of theirs.
    """
    params.ray_client_server_port = None
    if not head and sys.platform == "linux":
        params.worker_path = str(Path(__file__).with_name("worker_stub.py"))
        os.environ[VARIABLE] = str(Path(params.temp_dir) / "template")
