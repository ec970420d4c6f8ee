"""A compiled step goes from one node to another through the store: real agents, trainers and compilers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.domain.states import Reason
from tests.integration.agent.bench import Bench
from tests.unit.trainer.support import TINY, write_text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif("ORCH_SOAK" not in os.environ, reason="compiles for a minute: make soak"),
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"),
]


@contextmanager
def node(root: Path, name: str, patch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A node with a cache of its own, and the store that all nodes of a test have."""
    (root / name).mkdir()
    patch.setenv("ORCH_CACHE_DIR", str(root / name / "cache"))
    patch.setenv("ORCH_SHARE_COMPILED", "1")
    bench = Bench(root / name, f"file://{root / 'store'}")
    try:
        yield bench
    finally:
        bench.close()


def test_the_second_node_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"trainer": {**TINY, "dataset": str(write_text(tmp_path)), "compile": True}}
    with node(tmp_path, "first", monkeypatch) as first:
        first.start(spec, run_id="run-1")
        assert first.wait_outcome(240).reason is Reason.COMPLETED, first.evidence()
        assert [one for one in first.controller.events if "compiled step put into the store (" in one]
        assert b"compiling the step" in first.controller.log
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with node(tmp_path, "second", monkeypatch) as second:
        second.start(spec, run_id="run-2")
        assert second.wait_outcome(60).reason is Reason.COMPLETED, second.evidence()
        told = [one for one in second.controller.events if "compiled step" in one]
        assert [one.partition(" (")[0] for one in told] == ["compiled step taken from the store"]
        assert b"compiling the step" not in second.controller.log
