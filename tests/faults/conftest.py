"""Stores of both kinds."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.objects import open_store, store_id
from tests.s3 import S3Server, s3_server

BUCKET = "stores"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with a bucket; its access key is in the environment meanwhile."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        server.client().create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty store of each kind, ready to use."""
    if request.param == "file":
        uri = f"file://{tmp_path}/store"
    else:
        uri = request.getfixturevalue("s3").uri(BUCKET, uuid.uuid4().hex)
    store_id(open_store(uri), create=True)
    return uri
