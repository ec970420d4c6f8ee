"""Addresses of the pages about a run."""

from __future__ import annotations

from orchestrator.store.spool import Spool
from orchestrator.tracking.links import experiment_link, metric_link, run_link


def pages(spool: Spool, mlflow_url: str, run_id: str) -> dict[str, str]:
    """Name -> address: `run`, `loss`, `experiment`; none until MLflow knows the run."""
    known = spool.mlflow_run(run_id)
    if known is None or not mlflow_url:
        return {}
    experiment, mlflow_run = known
    return {
        "run": run_link(mlflow_url, experiment, mlflow_run),
        "loss": metric_link(mlflow_url, [experiment], [mlflow_run], "train/loss"),
        "experiment": experiment_link(mlflow_url, experiment),
    }
