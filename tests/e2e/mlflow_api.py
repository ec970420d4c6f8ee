"""Reads an MLflow server back through its REST API, independent of the code under test."""

from __future__ import annotations

from typing import Any

import httpx


class MlflowReader:
    """One server."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=f"{url.rstrip('/')}/api/2.0/mlflow", timeout=30)

    def run_of(self, run_id: str) -> list[dict[str, Any]]:
        """All MLflow runs that claim to be this run."""
        return self.search(f"tags.`orch.run_id` = '{run_id}'")

    def of_sweep(self, sweep_id: str) -> list[dict[str, Any]]:
        """The MLflow runs of a sweep and of its trials."""
        return self.search(f"tags.`orch.sweep_id` = '{sweep_id}'")

    def search(self, chosen: str) -> list[dict[str, Any]]:
        """The runs of all experiments that a filter lets through."""
        experiments = self._http.post("/experiments/search", json={"max_results": 100}).json()["experiments"]
        body = {"experiment_ids": [e["experiment_id"] for e in experiments], "filter": chosen}
        return list(self._http.post("/runs/search", json=body).json().get("runs", []))

    def history(self, mlflow_run: str, key: str) -> list[tuple[int, float]]:
        """Every stored point of a metric as (step, value), in order of step."""
        points: list[tuple[int, float]] = []
        token = ""
        while True:
            query = {"run_id": mlflow_run, "metric_key": key, "max_results": 1000, "page_token": token}
            page = self._http.get("/metrics/get-history", params=query).json()
            points += [(int(m["step"]), float(m["value"])) for m in page.get("metrics", [])]
            token = page.get("next_page_token", "")
            if not token:
                return sorted(points)

    def artifacts(self, mlflow_run: str, path: str = "") -> list[str]:
        """Paths of artifacts below a folder."""
        answer = self._http.get("/artifacts/list", params={"run_id": mlflow_run, "path": path}).json()
        return [entry["path"] for entry in answer.get("files", [])]

    def checkpoints(self, experiment: str, mlflow_run: str) -> list[dict[str, Any]]:
        """Logged models of a run."""
        body = {"experiment_ids": [experiment], "filter": f"source_run_id = '{mlflow_run}'"}
        return list(self._http.post("/logged-models/search", json=body).json().get("models", []))
