"""The way to an S3 server: where it is, boto3's client, and when a request is sent again."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from orchestrator.errors import SetupError
from orchestrator.store.protocol import check_key
from orchestrator.store.s3_errors import is_transient
from orchestrator.store.throttle import PacedBody

T = TypeVar("T")
PARALLEL: Final = 8
"""Requests of one transfer at a time."""
_ATTEMPTS: Final = 10
_BACKOFF_S, _BACKOFF_MOST_S = 0.1, 8.0
_CONNECT_S, _READ_S = 10.0, 60.0


@dataclass(frozen=True)
class Place:
    """What ``s3://bucket/prefix?endpoint=…&region=…&profile=…`` says."""

    bucket: str
    prefix: str
    """Empty, or ends with a slash."""
    endpoint: str | None
    region: str | None
    profile: str | None

    @classmethod
    def parse(cls, uri: str) -> Place:
        """SetupError where the URI says something else, a secret for example."""
        parts = urlsplit(uri)
        if "@" in parts.netloc:
            raise SetupError(
                "an s3:// URI may not contain an access key",
                remedy="Keep it in the environment or ~/.aws/credentials; name its profile by ?profile=NAME.",
            )
        options = parse_qs(parts.query, keep_blank_values=True)
        unknown = sorted(set(options) - {"endpoint", "region", "profile"})
        if unknown or not parts.netloc or parts.fragment:
            raise SetupError(
                f"an s3:// URI cannot say {', '.join(unknown)}"
                if unknown
                else "an s3:// URI names no bucket",
                remedy="Write s3://BUCKET/PREFIX?endpoint=http://HOST:PORT&region=REGION&profile=NAME; "
                "all but the bucket can be left out.",
            )
        prefix = unquote(parts.path).strip("/")
        if prefix:
            check_key(prefix)
        chosen = {name: values[-1] or None for name, values in options.items()}
        return cls(
            parts.netloc,
            f"{prefix}/" if prefix else "",
            chosen.get("endpoint"),
            chosen.get("region"),
            chosen.get("profile"),
        )

    @property
    def uri(self) -> str:
        """In one form for all ways to write it, without where it is reached."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


@dataclass
class Tries:
    """How often a request was sent."""

    made: int = 0

    @property
    def repeated(self) -> bool:
        """Whether an earlier try may have been carried out without our knowing."""
        return self.made > 1


def retried(work: Callable[[], T], tries: Tries | None = None) -> T:
    """Do it again while that may help, after pauses that double and are spread by chance; raises the last
    error.
    """
    tries = tries or Tries()
    while True:
        tries.made += 1
        try:
            return work()
        except Exception as error:
            if tries.made >= _ATTEMPTS or not is_transient(error):
                raise
        longest = min(_BACKOFF_MOST_S, _BACKOFF_S * 2**tries.made)
        time.sleep(random.uniform(0.0, longest))


def answers(client: Any, bucket: str) -> bool:
    """Whether the server can be read from now."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except (BotoCoreError, ClientError):
        return False
    return True


def connect(place: Place) -> Any:
    """boto3's client; it can be used from several threads."""
    import boto3
    from botocore.config import Config

    session = boto3.Session(profile_name=place.profile, region_name=place.region)
    client = session.client(
        "s3",
        endpoint_url=place.endpoint,
        region_name=place.region or session.region_name or os.environ.get("AWS_REGION") or "us-east-1",
        config=Config(
            # `retried` sends requests again: it must be known whether one was repeated.
            retries={"total_max_attempts": 1},
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            max_pool_connections=2 * PARALLEL,
            s3={"addressing_style": "path"} if place.endpoint else {},
        ),
    )
    # Between these two a request is signed, for which its body may be read: that is not sending.
    client.meta.events.register_first("request-created.s3", _before_signing)
    client.meta.events.register_last("request-created.s3", _after_signing)
    return client


class _Current(threading.local):
    body: PacedBody | None = None


_current = _Current()


@contextmanager
def sending(body: object) -> Iterator[None]:
    """The request that this thread makes in the block has this body."""
    _current.body = body if isinstance(body, PacedBody) else None
    try:
        yield
    finally:
        _current.body = None


def _before_signing(**_: Any) -> None:
    if _current.body is not None:
        _current.body.sending = False


def _after_signing(**_: Any) -> None:
    if _current.body is not None:
        _current.body.sending = True
