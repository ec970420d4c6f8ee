"""Which GPU a process of several sees: its own only."""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from pathlib import Path

_INSTALLED = Path("/proc/driver/nvidia/gpus")


def see_own_gpu(env: MutableMapping[str, str], installed: Callable[[], int] | None = None) -> None:
    """Of the GPUs that a rank is shown, have it see the one with its number LOCAL_RANK only, as its first.

    A compiled step is for a process's first GPU. Nothing is changed where there is no GPU of that number.
    Must be called before CUDA starts; `installed` tells how many GPUs there are where nothing limits them.
    """
    local = env.get("LOCAL_RANK", "")
    if env.get("WORLD_SIZE", "1") in ("", "1") or not local.isdecimal():
        return
    shown = env.get("CUDA_VISIBLE_DEVICES")
    count = installed or _installed
    names = [str(number) for number in range(count())] if shown is None else shown.split(",")
    if len(names) > 1 and int(local) < len(names):
        env["CUDA_VISIBLE_DEVICES"] = names[int(local)]


def _installed() -> int:
    try:
        return len(os.listdir(_INSTALLED))
    except OSError:  # no such driver
        return 0
