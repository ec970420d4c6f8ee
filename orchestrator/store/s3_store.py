"""Objects in a bucket of an S3 server: Amazon's, or any that honours conditional writes."""

from __future__ import annotations

import builtins
import contextlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from orchestrator.clock import SYSTEM
from orchestrator.errors import NotFoundError, StoreError
from orchestrator.store.protocol import CHUNK, LEFTOVER, ObjectInfo, Reader, Source, check_key, check_prefix
from orchestrator.store.s3_client import PARALLEL, Place, retried
from orchestrator.store.s3_errors import code_of
from orchestrator.store.s3_requests import EXISTS, MISSING, Requests, new_writer
from orchestrator.store.s3_upload import PART, Uploads, read_exactly
from orchestrator.store.throttle import Paces, process_paces

_CREATED_MOST: Final = 64 << 20
"""Bytes of an object that is created by one conditional request. Multipart uploads can end conditionally too,
but of six writers at once SeaweedFS let two win."""
_BEYOND: Final = frozenset({"InvalidRange", "416"})


class S3Store:
    """Keys are the bucket's, after the prefix.

    Create-only writes are one conditional request each (``If-None-Match: *``), so they may have 64 MiB at
    most. Where a request was carried out but its answer lost, the repeated one is told that the key exists:
    each writer leaves a mark of its own in the object's metadata, which tells its own object from another's.

    An object larger than :data:`PART` is sent and fetched in parts, up to eight at once and in memory.
    An upload that the server's absence has interrupted is gone on with by the next `put` of its key. One
    that fails otherwise takes its parts with it; those of a process that died are removed by `prepare` a day
    later.
    """

    def __init__(self, uri: str, paces: Paces | None = None) -> None:
        paces = paces or process_paces()
        self.place = Place.parse(uri)
        self.uri = self.place.uri
        self._requests = Requests(self.place, paces.up)
        self._parts = ThreadPoolExecutor(PARALLEL, "s3-part")
        self._uploads = Uploads(self._requests, self._parts, paces.up)
        self._down = paces.down
        self._most = paces.down.piece(PART)

    # ------------------------------------------------------------------ protocol

    def prepare(self) -> None:
        """Check that the bucket can be used; abort unfinished uploads that nobody goes on with."""
        self._requests.call("look into the bucket", "list_objects_v2", Prefix=self.place.prefix, MaxKeys=1)
        self.tidy(SYSTEM.now() - LEFTOVER)

    def put(self, key: str, source: Source, *, create_only: bool = False) -> bool:
        """See ObjectStore."""
        name = self._key(key)
        if create_only and self._exists(name):
            return False  # nothing was read from the source, and nothing sent
        with contextlib.ExitStack() as stack:
            reader: Reader
            if isinstance(source, bytes):
                reader = io.BytesIO(source)
            elif isinstance(source, Path):
                reader = stack.enter_context(source.open("rb", buffering=0))
            else:
                reader = source
            if create_only:
                return self._create(key, name, read_exactly(reader, _CREATED_MOST + 1))
            first = read_exactly(reader, PART)
            if len(first) < PART:
                self._uploads.forget(name)
                self._put(name, first)
            else:
                self._uploads.send(name, first, reader)
            return True

    def put_all(self, objects: Iterable[tuple[str, Source]]) -> None:
        """See ObjectStore."""
        for key, source in objects:
            self.put(key, source)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See ObjectStore."""
        name = self._key(key)
        if end is not None and end <= start:
            if not self._exists(name):
                raise self._missing(key)
            return iter(())
        return self._fetch(key, name, start, end)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        return self._listing(self.place.prefix + check_prefix(prefix))

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        name = self._key(key)
        self._uploads.forget(name)
        self._requests.call(f"delete {key}", "delete_object", Key=name)

    def tidy(self, begun_before: datetime, *, dry_run: bool = False) -> builtins.list[ObjectInfo]:
        """See ObjectStore. These are multipart uploads."""
        found: list[ObjectInfo] = []
        for upload in self._requests.uploads(self.place.prefix):
            if upload["Initiated"] < begun_before:
                name, number = upload["Key"], upload["UploadId"]
                size = self._requests.sent(name, number)
                found.append(ObjectInfo(name.removeprefix(self.place.prefix), size))
                if not dry_run:
                    self._requests.try_abort(name, number)
        return found

    # ------------------------------------------------------------------ writing

    def _create(self, key: str, name: str, body: bytes) -> bool:
        if len(body) > _CREATED_MOST:
            raise StoreError(
                f"{self.uri}: {key} has more than {_CREATED_MOST} bytes, too many to be create-only"
            )
        return self._put(name, body, IfNoneMatch="*")

    def _put(self, name: str, body: bytes, **condition: str) -> bool:
        writer = new_writer()
        return self._requests.written(name, "put_object", writer, data=body, Metadata=writer, **condition)

    # ------------------------------------------------------------------ reading

    def _fetch(self, key: str, name: str, start: int, end: int | None) -> Iterator[bytes]:
        stop = start + self._most if end is None else min(end, start + self._most)
        piece = self._piece(key, name, start, stop, None)
        if piece is None:
            return iter(())
        body, size, version = piece
        return self._rest(
            key, name, body, start + len(body), size if end is None else min(end, size), version
        )

    def _rest(
        self, key: str, name: str, body: bytes, position: int, end: int, version: str
    ) -> Iterator[bytes]:
        """The first part, and those after it, fetched a few ahead."""
        ahead: deque[Future[tuple[bytes, int, str] | None]] = deque()
        try:
            while True:
                while position < end and len(ahead) < PARALLEL:
                    stop = min(end, position + self._most)
                    ahead.append(self._parts.submit(self._piece, key, name, position, stop, version))
                    position = stop
                for place in range(0, len(body), CHUNK):
                    yield body[place : place + CHUNK]
                if not ahead:
                    return
                piece = ahead.popleft().result()
                if piece is None:
                    raise StoreError(f"{self.uri}: {key} became shorter while it was read")
                body = piece[0]
        finally:
            for future in ahead:
                future.cancel()

    def _piece(
        self, key: str, name: str, start: int, stop: int, version: str | None
    ) -> tuple[bytes, int, str] | None:
        """Bytes from `start` to `stop`, the object's size and its version; None where it ends before `start`.

        With `version` it must still be that one.
        """
        arguments = {"Bucket": self.place.bucket, "Key": name, "Range": f"bytes={start}-{stop - 1}"}
        if version:
            arguments["IfMatch"] = version

        def fetch() -> tuple[bytes, int, str]:
            if version:
                self._down.take(stop - start)
            answer = self._requests.client().get_object(**arguments)
            body: bytes = answer["Body"].read()
            if not version:  # only now it is known how many they are
                self._down.take(len(body))
            size = _size(answer, len(body))
            if len(body) != min(stop, size) - start:
                raise ConnectionError(f"{len(body)} bytes came instead of {min(stop, size) - start}")
            return body, size, answer["ETag"]

        try:
            return retried(fetch)
        except Exception as error:
            code = code_of(error)
            if code in MISSING:
                raise self._missing(key) from None
            if code in _BEYOND:
                return None
            if code in EXISTS:
                raise StoreError(f"{self.uri}: {key} was replaced while it was read") from error
            raise self._requests.translated(error, f"read {key}") from error

    def _exists(self, name: str) -> bool:
        return self._requests.head(name) is not None

    def _listing(self, prefix: str) -> Iterator[ObjectInfo]:
        found: list[ObjectInfo] = []
        more: dict[str, Any] = {}
        while True:
            answer = self._requests.call(f"list {prefix}", "list_objects_v2", Prefix=prefix, **more)
            for entry in answer.get("Contents", []):
                found.append(ObjectInfo(entry["Key"].removeprefix(self.place.prefix), entry["Size"]))
            if not answer.get("IsTruncated"):
                break
            more = {"ContinuationToken": answer["NextContinuationToken"]}
        # Not every server sorts by the whole key: some go through folders in turn.
        yield from sorted(found, key=lambda info: info.key)

    def _key(self, key: str) -> str:
        return self.place.prefix + check_key(key)

    def _missing(self, key: str) -> NotFoundError:
        return NotFoundError(f"{self.uri}: there is no {key}")


def _size(answer: dict[str, Any], received: int) -> int:
    """The whole object's size."""
    _, slash, total = str(answer.get("ContentRange", "")).rpartition("/")
    return int(total) if slash and total.isdigit() else received
