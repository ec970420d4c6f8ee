"""A busy cluster, an empty one and a hostile one, as `orch top` sees them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from orchestrator.domain.energy import EnergySource
from orchestrator.domain.states import RunState
from orchestrator.domain.sweep_states import SweepState
from orchestrator.messages import GpuView, Health, NodeView
from orchestrator.messages_schedules import ComingView
from orchestrator.messages_top import (
    TopBudget,
    TopCurve,
    TopEnergy,
    TopNode,
    TopRun,
    TopSweep,
    TopView,
    TopWaiting,
)
from tests.unit.cli.fake import NOW, detail

GIB = 2**30


def curve(values: list[float], every: int) -> TopCurve:
    """With a value for each so many steps."""
    return TopCurve(steps=[every * index for index in range(len(values))], values=values)


def falling(count: int, low: float, high: float = 4.2) -> list[float]:
    """A loss that falls fast and then slowly."""
    return [low + (high - low) * math.exp(-index / 6) for index in range(count)]


def running(name: str, node: str, step: int, target: int | None, **view: Any) -> TopRun:
    """A run that executes, and has a curve where it has a loss."""
    base = detail(name[:8], name, node=node, pool=node, step=step, target_steps=target, **view).run
    curves = {} if base.loss is None else {"train/loss": curve(falling(40, base.loss), max(1, step // 40))}
    if base.val_loss is not None and curves:
        curves["val/loss"] = curve(falling(8, base.val_loss), step // 8)
    return TopRun(run=base, step_s=0.0125, watts=12.5 if node == "laptop" else 187.4, curves=curves)


def waiting(name: str, minutes: float, why: str, **more: Any) -> TopWaiting:
    """A run that waits."""
    since = NOW - timedelta(minutes=minutes)
    values: dict[str, Any] = {"user": "ada", "priority": 0, "since": since, "why": why, **more}
    return TopWaiting(id=name[:8], name=name, **values)


def node(
    name: str, used: float, cpus: float, runs: list[str], watts: float | None = None, **more: Any
) -> TopNode:
    """A machine."""
    values = {"pool": name, "state": "ready", "memory": 8 * GIB, **more}
    return TopNode(node=NodeView(name=name, cpus=cpus, cpus_used=used, runs=runs, **values), watts=watts)


def busy() -> TopView:
    """Something in every section."""
    away = NOW - timedelta(hours=7)
    gpu = GpuView(index=0, name="RTX 4070 Ti", memory=12 * GIB, foreign_memory=GIB // 2, foreign_use=0.03)
    full = "pool gpu has no room (gaming-pc: its GPU is in use until about Sun 13:10 (estimate))"
    starting = {"state": RunState.STARTING, "loss": None, "val_loss": None, "eta_s": None}
    lost = {"state": RunState.UNREACHABLE, "message": "nothing is heard of old-laptop"}
    return TopView(
        at=NOW,
        health=Health(
            version="0.1.0", cluster_id="c1", ray_connected=True, mlflow_connected=True, mlflow_pending=1200
        ),
        running=[
            running("shakespeare-gpu", "gaming-pc", 3100, 5000, loss=1.0712, val_loss=1.4710, eta_s=1520.0),
            running("demo", "laptop", 500, 2000),
            running("any-script", "laptop", 120, None, loss=0.5, val_loss=None, eta_s=None),
            running("lr-sweep-t7", "gaming-pc", 0, 1000, **starting),
            running("night-owl", "old-laptop", 800, 1000, **lost),
        ],
        running_total=5,
        waiting=[
            waiting("ablation-3", 4, full, free=NOW + timedelta(minutes=70), estimated=True),
            waiting("lr-sweep-t8", 3, full, free=NOW + timedelta(minutes=70), estimated=True, user="bob"),
            waiting(
                "overnight",
                190,
                "outside its window 22:00-07:00 (Europe/Paris); it opens in 9 h, at 22:00",
                opens=NOW + timedelta(hours=9),
            ),
            waiting("held-back", 2000, "held back by its user (`orch queue release`)", held=True),
        ],
        waiting_total=1004,
        nodes=[
            node(
                "gaming-pc",
                3,
                16,
                ["shakespeare-gpu", "lr-sweep-t7"],
                187.4,
                pool="gpu",
                gpus=1,
                gpus_used=1,
                gpu_states=[gpu],
            ),
            node("laptop", 2, 2, ["demo", "any-script"], 25.0),
            node("lab", 0, 32, [], pool="gpu", gpus=4, busy="GPU 0 is 93 % busy", closed="its owner uses it"),
            node("old-laptop", 1, 4, ["night-owl"], pool="laptop", away_since=away),
        ],
        sweeps=[
            TopSweep(
                id="s1",
                name="lr-sweep",
                state=SweepState.RUNNING,
                metric="val/loss",
                done=6,
                open=2,
                total=12,
                best_trial=3,
                best_value=1.5731,
                budgets=[
                    TopBudget(kind="duration", used=1325.0, most=3600.0),
                    TopBudget(kind="kwh", used=0.21, most=2),
                ],
            ),
            TopSweep(id="s2", name="width", state=SweepState.PAUSED, metric="val/loss", done=0, open=0),
        ],
        fires=[
            coming("nightly", 10, 19),
            coming("weekly-report", 70, None),
        ],
        energy=TopEnergy(
            since=NOW - timedelta(hours=13),
            kwh=1.243,
            source=EnergySource.MIXED,
            cost=0.371,
            currency="EUR",
            watts=212.4,
        ),
    )


def coming(name: str, hours: float, closes: float | None) -> ComingView:
    """A due time."""
    at = NOW + timedelta(hours=hours)
    end = NOW + timedelta(hours=closes) if closes is not None else None
    return ComingView(schedule=name[:8], name=name, local=at.isoformat(), at=at, opens=at, closes=end)


def empty() -> TopView:
    """A controller that has nothing to do and nowhere to do it."""
    return TopView(
        at=NOW,
        health=Health(version="0.1.0", cluster_id="c1", ray_connected=True),
        running=[],
        running_total=0,
        waiting=[],
        waiting_total=0,
        nodes=[],
        sweeps=[],
        fires=[],
        energy=TopEnergy(since=NOW, kwh=0.0),
    )
