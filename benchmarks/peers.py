"""Other ways to run many small programs, each in a process and on a Ray of its own.

``python -m benchmarks.peers tune|jobs --cpus N`` prints ``{"ready": true}``, then reads a number of runs per
line from stdin and answers ``{"seconds": S}`` when that many have run. It ends with stdin, and Ray with it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

POLL_S = 0.05
"""Between two looks at jobs: often, so that looking costs the peer nothing."""


class Peer:
    """The parent's side. A context manager."""

    def __init__(self, name: str, cpus: int, folder: Path) -> None:
        self.name = name
        folder.mkdir(parents=True)
        drop = ("ORCH_", "RAY_", "MLFLOW_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
        env |= {
            "HOME": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        }
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers", name, "--cpus", str(cpus)],
            cwd=Path(__file__).parents[1],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __enter__(self) -> Self:
        self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._log.close()

    def run(self, count: int) -> float:
        """Seconds for `count` runs."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n".encode())
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            log = Path(self._log.name).read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the peer {self.name} has ended: {log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def tune(cpus: int) -> Callable[[int], float]:
    """Ray Tune with a fresh actor, and so a fresh process, for each trial."""
    import ray
    from ray import tune

    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    def trial(config: dict[str, Any]) -> dict[str, Any]:
        subprocess.run(["true"], check=True)
        return {"done": 1}

    def batch(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            tuner = tune.Tuner(
                tune.with_resources(trial, {"cpu": 1}),
                tune_config=tune.TuneConfig(num_samples=count, reuse_actors=False),
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            )
            began = time.perf_counter()
            found = tuner.fit()
            seconds = time.perf_counter() - began
        assert not found.errors, found.errors
        assert len(found) == count
        return seconds

    return batch


def jobs(cpus: int) -> Callable[[int], float]:
    """Ray Jobs: all submitted at once, each asking for one processor."""
    import ray
    from ray.job_submission import JobStatus, JobSubmissionClient

    context = ray.init(num_cpus=cpus, include_dashboard=True, dashboard_port=0, log_to_driver=False)
    client = JobSubmissionClient(f"http://{context.dashboard_url}")
    _until_accepted(lambda: client.submit_job(entrypoint="true"))

    def batch(count: int) -> float:
        began = time.perf_counter()
        waiting = {client.submit_job(entrypoint="true", entrypoint_num_cpus=1) for _ in range(count)}
        while waiting:
            for job in sorted(waiting):
                status = client.get_job_status(job)
                assert status not in (JobStatus.FAILED, JobStatus.STOPPED), client.get_job_info(job)
                if status == JobStatus.SUCCEEDED:
                    waiting.discard(job)
                else:
                    break  # They run in order, so the first that has not ended tells enough.
            time.sleep(POLL_S)
        return time.perf_counter() - began

    return batch


def _until_accepted(submit: Callable[[], str]) -> None:
    """Ray's agents are there some seconds after its head."""
    deadline = time.monotonic() + 60
    while True:
        try:
            submit()
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def main() -> None:
    """The peer's side."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("peer", choices=("tune", "jobs"))
    options.add_argument("--cpus", type=int, required=True)
    args = options.parse_args()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Both print a lot.
    batch = {"tune": tune, "jobs": jobs}[args.peer](args.cpus)
    _say(out, {"ready": True})
    for line in sys.stdin:
        _say(out, {"seconds": batch(int(line))})


def _say(out: IO[str], what: dict[str, Any]) -> None:
    out.write(json.dumps(what) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
