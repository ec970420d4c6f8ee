"""Addresses of MLflow's pages.

MLflow 3 opens pages in its GenAI mode unless the address says ``workflowType=machine_learning``; lists travel
as URL-encoded JSON; on the comparison page ``runs`` must come first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

_MODE = "workflowType=machine_learning"


def run_link(base: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{_root(base)}/experiments/{experiment_id}/runs/{run_id}?{_MODE}"


def artifact_link(base: str, experiment_id: str, run_id: str, path: str) -> str:
    """The page of one run with one of its files open."""
    return f"{_root(base)}/experiments/{experiment_id}/runs/{run_id}/artifacts/{quote(path)}?{_MODE}"


def experiment_link(base: str, experiment_id: str) -> str:
    """The table of an experiment's runs."""
    return f"{_root(base)}/experiments/{experiment_id}/runs?{_MODE}"


def compare_link(base: str, experiment_ids: Sequence[str], run_ids: Sequence[str]) -> str:
    """Several runs side by side: parameters, metrics, tags, plots."""
    return f"{_root(base)}/compare-runs?runs={_json(run_ids)}&experiments={_json(experiment_ids)}&{_MODE}"


def charts_link(
    base: str, experiment_id: str, chosen: str, metric: str = "val/loss", *, ascending: bool = True
) -> str:
    """The chart view of an experiment, restricted to the chosen runs and ordered by the metric's last value.

    `chosen` is :func:`these_runs` or :func:`trials_of`. In any order but that of their begin MLflow shows
    children without their parent, and does not fold them.
    """
    order = f"orderByKey={quote(f'metrics.`{metric}`', safe='')}&orderByAsc={str(ascending).lower()}"
    return (
        f"{_root(base)}/experiments/{experiment_id}/runs?{_MODE}&compareRunsMode=CHART"
        f"&searchFilter={quote(chosen, safe='')}&{order}"
    )


def these_runs(run_ids: Sequence[str]) -> str:
    """MLflow's filter for some runs."""
    return f"attributes.run_id IN ({', '.join(map(repr, run_ids))})"


def trials_of(sweep_id: str) -> str:
    """MLflow's filter for the trials of a sweep, however many, without the sweep's own run."""
    return f"tags.`orch.sweep_id` = '{sweep_id}' AND tags.`orch.trial` LIKE '%'"


def metric_link(base: str, experiment_ids: Sequence[str], run_ids: Sequence[str], metric: str) -> str:
    """One metric of several runs as a curve."""
    return (
        f"{_root(base)}/metric?runs={_json(run_ids)}&metric={_json(metric)}"
        f"&experiments={_json(experiment_ids)}&plot_metric_keys={_json([metric])}&x_axis=step&{_MODE}"
    )


def _root(base: str) -> str:
    return f"{base.rstrip('/')}/#"


def _json(value: Sequence[str]) -> str:
    listed = value if isinstance(value, str) else list(value)
    return quote(json.dumps(listed, separators=(",", ":")), safe="")
