"""A real S3 server for tests: SeaweedFS, on free ports of the loopback device, with a folder of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from orchestrator.agent.ports import bindable
from tests.support import process, wait_until

ACCESS_KEY, SECRET_KEY = "tests", "tests-4f1c9e2b7a"
_GRPC_OFFSET = 10_000
"""Each of its services listens on a second port that much higher."""
_PORTS = range(10_000, 20_000)
"""With the second ones below Linux's range for outgoing connections."""


@dataclass(frozen=True)
class S3Server:
    """Where it is."""

    endpoint: str

    def client(self) -> Any:
        """boto3's client, one try per request."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20),
        )

    def uri(self, bucket: str, prefix: str = "") -> str:
        """A store there."""
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to be let in."""
        return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run one until the end of the block."""
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    master, volume, filer, s3 = _free_pairs(4)
    argv = [
        weed,
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-s3.port={s3}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        f"-s3.config={folder / 's3.json'}",
    ]
    log = folder / "weed.log"
    server = S3Server(f"http://127.0.0.1:{s3}")
    with process(argv, log, cwd=folder, env={**os.environ, "HOME": str(folder)}) as child:

        def answers() -> bool:
            assert child.poll() is None, log.read_text()[-2000:]
            try:
                server.client().create_bucket(Bucket="ready")
                server.client().put_object(Bucket="ready", Key="ready", Body=b"")
            except (BotoCoreError, ClientError):
                return False
            return True

        wait_until(answers, 60, lambda: log.read_text()[-2000:])
        yield server
        os.killpg(child.pid, signal.SIGKILL)  # its data is thrown away; it would take 10 s to end by itself


def _free_pairs(count: int) -> list[int]:
    """Different ports, each free together with the one that its service adds."""
    wanted = random.sample(_PORTS, 100)
    free = [p for p in wanted if bindable("127.0.0.1", p) and bindable("127.0.0.1", p + _GRPC_OFFSET)]
    assert len(free) >= count, "no free pairs of ports"
    return free[:count]
