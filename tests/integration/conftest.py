"""Services that integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mlflow_server import MlflowServer
from tests.mlflow_server import mlflow_server as running_mlflow_server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server for the whole session. A test that freezes or kills it brings it back."""
    with running_mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server
