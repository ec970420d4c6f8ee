"""Objects in a bucket of an S3 server: Amazon's, or any that honours conditional writes."""

from __future__ import annotations

import builtins
import contextlib
import io
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from orchestrator.clock import SYSTEM
from orchestrator.errors import NotFoundError, StoreError
from orchestrator.store.protocol import (
    CHUNK,
    LEFTOVER,
    ObjectInfo,
    Reader,
    Source,
    check_key,
    check_prefix,
)
from orchestrator.store.s3_client import PARALLEL, Place, Tries, answers, connect, retried
from orchestrator.store.s3_errors import code_of, is_refusal, status_of, translate

PART: Final = 8 << 20
"""Bytes of one request's body. Larger objects travel in several requests side by side."""
_WRITER: Final = "writer"
"""Metadata: who wrote an object. Tells whether a repeated request found what it had written itself."""
_CREATED_MOST: Final = 64 << 20
"""Bytes of an object that is created by one conditional request. Multipart uploads can end conditionally too,
but of six writers at once SeaweedFS let two win."""
_EXISTS: Final = frozenset({"PreconditionFailed", "412"})
_MISSING: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_BEYOND: Final = frozenset({"InvalidRange", "416"})
_GONE: Final = frozenset({"NoSuchUpload", "404"})


class S3Store:
    """Keys are the bucket's, after the prefix.

    Create-only writes are one conditional request each (``If-None-Match: *``), so they may have 64 MiB at
    most. Where a request was carried out but its answer lost, the repeated one is told that the key exists:
    each writer leaves a mark of its own in the object's metadata, which tells its own object from another's.

    An object larger than :data:`PART` is sent and fetched in parts, up to eight at once and in memory.
    An upload that fails takes its parts with it; those of a process that died are removed by
    `prepare` a day later.
    """

    def __init__(self, uri: str) -> None:
        self.place = Place.parse(uri)
        self.uri = self.place.uri
        self._lock = threading.Lock()
        self._client: Any = None
        self._parts = ThreadPoolExecutor(PARALLEL, "s3-part")

    # ------------------------------------------------------------------ protocol

    def prepare(self) -> None:
        """Check that the bucket can be used; abort unfinished uploads that nobody goes on with."""
        bucket, prefix = self.place.bucket, self.place.prefix
        self._call("look into the bucket", "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
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
                return self._create(key, name, _read(reader, _CREATED_MOST + 1))
            first = _read(reader, PART)
            if len(first) < PART:
                self._written(name, "put_object", _new_writer(), Body=first)
            else:
                self._send_parts(name, first, reader)
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
        self._call(f"delete {key}", "delete_object", Bucket=self.place.bucket, Key=self._key(key))

    def tidy(self, begun_before: datetime, *, dry_run: bool = False) -> builtins.list[ObjectInfo]:
        """See ObjectStore. These are multipart uploads."""
        found: list[ObjectInfo] = []
        for upload in list(self._uploads(self.place.prefix)):
            if upload["Initiated"] < begun_before:
                name, number = upload["Key"], upload["UploadId"]
                found.append(ObjectInfo(name.removeprefix(self.place.prefix), self._sent(name, number)))
                if not dry_run:
                    self._abort(name, number)
        return found

    # ------------------------------------------------------------------ writing

    def _create(self, key: str, name: str, body: bytes) -> bool:
        if len(body) > _CREATED_MOST:
            raise StoreError(
                f"{self.uri}: {key} has more than {_CREATED_MOST} bytes, too many to be create-only"
            )
        return self._written(name, "put_object", _new_writer(), Body=body, IfNoneMatch="*")

    def _send_parts(self, name: str, first: bytes, reader: Reader) -> None:
        writer = _new_writer()
        upload = self._begin(name, writer)
        try:
            parts = {"Parts": self._upload(name, upload, first, reader)}
            self._written(name, "complete_multipart_upload", writer, UploadId=upload, MultipartUpload=parts)
        except BaseException:
            self._abort(name, upload)
            raise

    def _begin(self, name: str, writer: dict[str, str]) -> str:
        """The id of a new multipart upload. Where an answer was lost, that other upload is aborted."""
        asked = Tries()
        arguments = {"Bucket": self.place.bucket, "Key": name, "Metadata": writer}
        upload: str = self._call(f"store {name}", "create_multipart_upload", asked, **arguments)["UploadId"]
        if asked.repeated:
            for other in list(self._uploads(name)):
                if other["Key"] == name and other["UploadId"] != upload:
                    self._abort(name, other["UploadId"])
        return upload

    def _upload(self, name: str, upload: str, first: bytes, reader: Reader) -> Sequence[dict[str, Any]]:
        def send(number: int, body: bytes) -> dict[str, Any]:
            answer = self._call(
                f"store {name}",
                "upload_part",
                Bucket=self.place.bucket,
                Key=name,
                UploadId=upload,
                PartNumber=number,
                Body=body,
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        under_way: deque[Future[dict[str, Any]]] = deque()
        done: list[dict[str, Any]] = []
        body, number = first, 1
        try:
            while body:
                under_way.append(self._parts.submit(send, number, body))
                if len(under_way) == PARALLEL:
                    done.append(under_way.popleft().result())
                body, number = _read(reader, PART), number + 1
            done.extend(future.result() for future in under_way)
        finally:
            for future in under_way:
                future.cancel()
            for future in under_way:
                if not future.cancelled():
                    future.exception()  # a part must not arrive after the upload was given up
        return done

    def _written(self, name: str, operation: str, writer: dict[str, str], **arguments: Any) -> bool:
        """Carry out a write; False where its condition did not hold because of somebody else's object."""
        from botocore.exceptions import ClientError

        if operation == "put_object":
            arguments["Metadata"] = writer
        asked = Tries()
        try:
            self._asked(operation, asked, Bucket=self.place.bucket, Key=name, **arguments)
        except ClientError as error:
            code = code_of(error)
            exists = "IfNoneMatch" in arguments and code in _EXISTS
            if asked.repeated and (exists or code in _GONE) and self._writer_of(name) == writer[_WRITER]:
                return True  # an earlier try was carried out, only its answer was lost
            if exists:
                return False
            raise self._translated(error, f"store {name}", operation) from error
        except Exception as error:
            raise self._translated(error, f"store {name}", operation) from error
        return True

    def _writer_of(self, name: str) -> str | None:
        found = self._head(name)
        metadata: dict[str, str] = found.get("Metadata", {}) if found else {}
        return metadata.get(_WRITER)

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Unfinished multipart uploads of keys that begin so."""
        more: dict[str, Any] = {}
        while True:
            answer = self._call(
                "list uploads", "list_multipart_uploads", Bucket=self.place.bucket, Prefix=prefix, **more
            )
            yield from answer.get("Uploads", [])
            if not answer.get("IsTruncated"):
                return
            more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def _sent(self, name: str, upload: str) -> int:
        """Bytes that an unfinished upload holds, as far as one answer tells: at most a thousand parts."""
        try:
            answer = self._asked("list_parts", Tries(), Bucket=self.place.bucket, Key=name, UploadId=upload)
        except Exception as error:
            if code_of(error) in _GONE:
                return 0
            raise self._translated(error, "list parts") from error
        return sum(part["Size"] for part in answer.get("Parts", []))

    def _abort(self, name: str, upload: str) -> None:
        with contextlib.suppress(StoreError):  # `prepare` removes it on a later day
            self._call(
                f"give up storing {name}",
                "abort_multipart_upload",
                Bucket=self.place.bucket,
                Key=name,
                UploadId=upload,
            )

    # ------------------------------------------------------------------ reading

    def _fetch(self, key: str, name: str, start: int, end: int | None) -> Iterator[bytes]:
        stop = start + PART if end is None else min(end, start + PART)
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
                    stop = min(end, position + PART)
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
        from botocore.exceptions import ClientError

        arguments = {"Bucket": self.place.bucket, "Key": name, "Range": f"bytes={start}-{stop - 1}"}
        if version:
            arguments["IfMatch"] = version

        def fetch() -> tuple[bytes, int, str]:
            answer = self._connected().get_object(**arguments)
            body: bytes = answer["Body"].read()
            size = _size(answer, len(body))
            if len(body) != min(stop, size) - start:
                raise ConnectionError(f"{len(body)} bytes came instead of {min(stop, size) - start}")
            return body, size, answer["ETag"]

        try:
            return retried(fetch)
        except ClientError as error:
            code = code_of(error)
            if code in _MISSING:
                raise self._missing(key) from None
            if code in _BEYOND:
                return None
            if code in _EXISTS:
                raise StoreError(f"{self.uri}: {key} was replaced while it was read") from error
            raise self._translated(error, f"read {key}") from error
        except Exception as error:
            raise self._translated(error, f"read {key}") from error

    def _exists(self, name: str) -> bool:
        return self._head(name) is not None

    def _head(self, name: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            return self._asked("head_object", Tries(), Bucket=self.place.bucket, Key=name)
        except ClientError as error:
            if code_of(error) in _MISSING or status_of(error) == 404:
                return None
            raise self._translated(error, f"look for {name}") from error
        except Exception as error:
            raise self._translated(error, f"look for {name}") from error

    def _listing(self, prefix: str) -> Iterator[ObjectInfo]:
        found: list[ObjectInfo] = []
        more: dict[str, Any] = {}
        while True:
            answer = self._call(
                f"list {prefix}", "list_objects_v2", Bucket=self.place.bucket, Prefix=prefix, **more
            )
            for entry in answer.get("Contents", []):
                found.append(ObjectInfo(entry["Key"].removeprefix(self.place.prefix), entry["Size"]))
            if not answer.get("IsTruncated"):
                break
            more = {"ContinuationToken": answer["NextContinuationToken"]}
        # Not every server sorts by the whole key: some go through folders in turn.
        yield from sorted(found, key=lambda info: info.key)

    # ------------------------------------------------------------------ the client

    def _key(self, key: str) -> str:
        return self.place.prefix + check_key(key)

    def _call(
        self, action: str, operation: str, asked: Tries | None = None, **arguments: Any
    ) -> dict[str, Any]:
        try:
            return self._asked(operation, asked or Tries(), **arguments)
        except Exception as error:
            raise self._translated(error, action, operation) from error

    def _asked(self, operation: str, tries: Tries, **arguments: Any) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = getattr(self._connected(), operation)(**arguments)
            return answer

        return retried(ask, tries)

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = connect(self.place)
            return self._client

    def _translated(self, error: Exception, action: str, operation: str = "") -> StoreError:
        endpoint, bucket = self.place.endpoint or "Amazon S3", self.place.bucket
        refused = is_refusal(error, operation) and answers(self._connected(), bucket)
        return translate(error, self.uri, bucket, endpoint, action, refused=refused)

    def _missing(self, key: str) -> NotFoundError:
        return NotFoundError(f"{self.uri}: there is no {key}")


def _new_writer() -> dict[str, str]:
    return {_WRITER: uuid.uuid4().hex}


def _size(answer: dict[str, Any], received: int) -> int:
    """The whole object's size."""
    _, slash, total = str(answer.get("ContentRange", "")).rpartition("/")
    return int(total) if slash and total.isdigit() else received


def _read(reader: Reader, size: int) -> bytes:
    """Exactly `size` bytes, or fewer at the end."""
    parts: list[bytes] = []
    while size and (part := reader.read(min(size, CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
