"""How much time or computing the fast recipe needs to a loss that nanoGPT reaches.

Only training counts: evaluations happen between the timed slices. What the first steps take, compiling
included, is replaced by the rate of the others, for both programs alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.cases import Device, hyperparameters, settings
from benchmarks.curves import Curve
from benchmarks.report import Row, row, unmeasured
from benchmarks.serving import Slice
from benchmarks.workers import Bench, Worker, WorkerError

TARGET_VAL = 1.4697
"""nanoGPT's README: its best val loss at 6x384, there an estimate over 200 batches."""
NANOGPT_STEPS = 1750
"""Iterations that nanoGPT's hyperparameters need to that loss."""
WARM_STEPS = 20
"""Steps whose time is replaced by the rate of the others."""
FAST_GPU: dict[str, Any] = {
    "recipe": "fast",
    "max_steps": 350,
    "ngrams": 2,
    "dropout": 0.1,
    "weight_decay": 0.3,
    "learning_rate": 0.005,
}
FAST_CPU: dict[str, Any] = {"recipe": "fast", "max_steps": 120}
_NANOGPTS_OWN = ("learning_rate", "min_lr", "warmup_steps", "beta2", "weight_decay", "grad_clip")

Clock = Literal["wall_s", "cpu_s"]


def time_to_loss(
    bench: Bench, shape: dict[str, Any], fast: dict[str, Any], seeds: Sequence[int]
) -> tuple[list[Row], dict[str, Any]]:
    """Wall time on the GPU until the whole val split's loss is at most TARGET_VAL."""
    with bench.nanogpt(hyperparameters(shape), "cuda", "bfloat16", compiled=True, name="to-loss") as peer:
        first = peer.steps(WARM_STEPS)
        rest = [peer.steps(NANOGPT_STEPS // 7) for _ in range(7)]
        peer_val = peer.val()
    print(f"  nanoGPT: val {peer_val:.4f} after {NANOGPT_STEPS} iterations", flush=True)
    peer_s = seconds([first, *rest], "wall_s", NANOGPT_STEPS)
    runs = [fast_run(bench, shape, fast, seed, "cuda", "wall_s", TARGET_VAL) for seed in seeds]
    details = {
        "settings": fast,
        "target": TARGET_VAL,
        "runs": runs,
        "nanogpt_s": peer_s,
        "nanogpt_val": peer_val,
    }
    peer_name = f"nanoGPT compiled, {NANOGPT_STEPS} iterations"
    return [reached_row(f"wall time to val <= {TARGET_VAL}", runs, peer_s, peer_name, 10.0)], details


def compute_to_loss(
    bench: Bench, shape: dict[str, Any], fast: dict[str, Any], seeds: Sequence[int]
) -> tuple[list[Row], dict[str, Any]]:
    """Processor time until the loss that nanoGPT's eager run ends with."""
    steps = int(shape["max_steps"])
    with bench.nanogpt(hyperparameters(shape), "cpu", "float32", compiled=False, name="to-loss") as peer:
        parts = [peer.steps(WARM_STEPS), *(peer.steps(250) for _ in range((steps - WARM_STEPS) // 250))]
        parts.append(peer.steps(max(1, steps - sum(part.steps for part in parts))))
        target = peer.val()
    print(f"  nanoGPT: val {target:.4f} after {steps} iterations", flush=True)
    peer_s = seconds(parts, "cpu_s", steps)
    runs = [fast_run(bench, shape, fast, seed, "cpu", "cpu_s", target) for seed in seeds]
    details = {"settings": fast, "target": target, "runs": runs, "nanogpt_s": peer_s}
    name = f"processor time to nanoGPT's val after {steps}"
    return [reached_row(name, runs, peer_s, "nanoGPT eager", 3.0)], details


def fast_run(
    bench: Bench,
    shape: dict[str, Any],
    fast: dict[str, Any],
    seed: int,
    device: Device,
    clock: Clock,
    target: float,
) -> dict[str, Any]:
    """Train with the fast recipe until the loss is reached or the steps are used up.

    The failure of a run is its result, so that the others are made all the same.
    """
    everything = settings(shape, device, "auto")
    config = {key: value for key, value in everything.items() if key not in _NANOGPTS_OWN}
    config |= {**fast, "seed": seed}
    try:
        with bench.ours(config, f"fast-{seed}") as worker:
            result = until(worker, int(config["max_steps"]), clock, target)
    except WorkerError as e:
        print(f"  {e}", flush=True)
        return {"seed": seed, "seconds": None, "error": str(e)}
    step, loss = result["curve"][-1]
    print(f"  seed {seed}: val {loss:.4f} at step {step}, {result['seconds']} s", flush=True)
    return {"seed": seed, **result}


def until(worker: Worker, last: int, clock: Clock, target: float) -> dict[str, Any]:
    """The step and time at which the loss was first measured to be at most `target`; None: never.

    From a third of the steps on, it is measured after every fortieth of them, but no more often than every 5.
    """
    every = max(5, last // 40)
    slices = [worker.steps(WARM_STEPS), worker.steps(max(1, last // 3 - WARM_STEPS))]
    curve: Curve = []
    while True:
        step = sum(part.steps for part in slices)
        curve.append((step, worker.val()))
        if curve[-1][1] <= target or step >= last:
            break
        slices.append(worker.steps(min(every, last - step)))
    reached = curve[-1][1] <= target
    return {
        "reached_step": step if reached else None,
        "seconds": seconds(slices, clock, step) if reached else None,
        "curve": curve,
    }


def seconds(slices: Sequence[Slice], clock: Clock, steps: int) -> float:
    """Time of `steps` steps; all are taken to be as fast as those after the first slice were."""
    later = slices[1:]
    return float(sum(getattr(part, clock) for part in later)) / sum(part.steps for part in later) * steps


def reached_row(name: str, runs: Sequence[dict[str, Any]], peer_s: float, peer: str, factor: float) -> Row:
    """The median over the seeds; not measured where the median seed did not get there."""
    times = sorted(run["seconds"] for run in runs if run["seconds"] is not None)
    missed = len(runs) - len(times)
    goal = f"ratio <= {1 / factor:.3g}"
    if missed * 2 >= len(runs):
        return unmeasured(name, f"{missed} of {len(runs)} seeds did not reach it", goal)
    times += [times[-1]] * missed  # beyond the median, so that its value does not matter
    note = f"{missed} of {len(runs)} seeds did not reach it" if missed else ""
    return row(name, times, "s", peer=peer, peer_values=[peer_s], limit=1 / factor, of="ratio", note=note)
