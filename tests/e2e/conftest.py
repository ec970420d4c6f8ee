"""One stack for the tests that leave it standing, with "a laptop and a GPU box" on this machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, running_stack


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 kB of words to train on, the same at every call."""
    rng = random.Random(7)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(400)]
    lines = (" ".join(rng.choices(words, k=9)).capitalize() + "." for _ in range(4000))
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(lines))
    return path


WINDOW_GRACE_S = 10.0
"""Seconds before its window's end at which a run is told to save."""


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nodes `laptop` and `gpu`, a controller and an MLflow server."""
    home = tmp_path_factory.mktemp("orch") / "home"
    env = {"ORCH_WINDOW_GRACE": f"{WINDOW_GRACE_S:g}"}
    with running_stack(home, "laptop:cpus=1", "gpu:cpus=1", env=env) as running:
        yield running
    assert running.leftovers() == []
