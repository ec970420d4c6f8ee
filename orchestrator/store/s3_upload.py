"""Large objects on their way to an S3 server: sent in parts, gone on with after an interruption."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from orchestrator.errors import StoreUnavailableError
from orchestrator.store.protocol import CHUNK, Reader
from orchestrator.store.s3_client import Tries
from orchestrator.store.s3_errors import code_of, is_transient
from orchestrator.store.s3_requests import GONE, Requests, new_writer
from orchestrator.store.throttle import Pace

PART: Final = 8 << 20
"""Bytes of one request's body. Larger objects travel in several requests side by side."""
UPLOADS: Final = 4
"""Parts of one object that are sent at a time; more are not faster."""
_UPLOADS_AT_FIRST: Final = 2
_AT_FIRST: Final = 8
"""So many of the first parts: what is under way when the server goes is lost, at most a quarter of them."""
REMEMBERED: Final = 8
"""Interrupted uploads that a store remembers; each takes about 300 bytes of memory a part."""
_SMALL_PARTS: Final = 5000
"""So many parts of a large object have :data:`PART` bytes, 40 GiB in all."""
_LARGE_PART: Final = 8 * PART
"""Bytes of the later ones: S3 takes 10,000 parts of an object, which allows 350 GiB in all."""


def part_size(number: int) -> int:
    """Bytes of a part; the first has the number 1."""
    return PART if number <= _SMALL_PARTS else _LARGE_PART


@dataclass(frozen=True)
class SentPart:
    """A part that the server has; `digest` is the SHA-256 of its bytes."""

    number: int
    size: int
    digest: bytes
    etag: str


@dataclass
class Upload:
    """A multipart upload that was begun."""

    name: str
    id: str
    writer: dict[str, str]
    sent: dict[int, SentPart] = field(default_factory=dict)

    def has(self, number: int, body: bytes, digest: bytes) -> SentPart | None:
        """The part that was sent before, if it had the same bytes."""
        part = self.sent.get(number)
        return part if part and (part.size, part.digest) == (len(body), digest) else None


class Uploads:
    """Sends objects in parts, and remembers the uploads that an absent server has interrupted.

    Of an interrupted upload its id and each part's number, size, digest and ETag are kept, no bytes. What
    fails for any other reason takes its parts with it.
    """

    def __init__(self, requests: Requests, pool: ThreadPoolExecutor, up: Pace) -> None:
        self._requests = requests
        self._most = up.parallel(UPLOADS)
        self._pool = pool
        self._lock = threading.Lock()
        self._interrupted: OrderedDict[str, Upload] = OrderedDict()

    def send(self, name: str, first: bytes, reader: Reader) -> None:
        """Store an object of which the first part has been read."""
        upload = self._resumed(name) or self._begin(name)
        try:
            parts = [
                {"PartNumber": part.number, "ETag": part.etag} for part in self._parts(upload, first, reader)
            ]
            self._requests.written(
                name,
                "complete_multipart_upload",
                upload.writer,
                UploadId=upload.id,
                MultipartUpload={"Parts": parts},
            )
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, Exception) and is_transient(error.__cause__):
                self._remember(upload)
            else:
                self._requests.try_abort(name, upload.id)
            raise
        except BaseException:
            self._requests.try_abort(name, upload.id)
            raise

    def forget(self, name: str) -> None:
        """Abort the interrupted upload of this object, if there is one. Where that fails it stays
        remembered.
        """
        with self._lock:
            upload = self._interrupted.get(name)
        if upload is not None:
            self._requests.abort(name, upload.id)
            with self._lock:
                self._interrupted.pop(name, None)

    # ------------------------------------------------------------------ beginning, and going on

    def _remember(self, upload: Upload) -> None:
        with self._lock:
            self._interrupted[upload.name] = upload
            oldest = self._interrupted.popitem(last=False)[1] if len(self._interrupted) > REMEMBERED else None
        if oldest is not None:
            self._requests.try_abort(oldest.name, oldest.id)

    def _resumed(self, name: str) -> Upload | None:
        """The interrupted upload of this object with the parts that the server still has; None where it
        knows nothing of it.
        """
        with self._lock:
            upload = self._interrupted.pop(name, None)
        if upload is None:
            return None
        try:
            held = self._held(upload)
        except StoreUnavailableError:
            self._remember(upload)
            raise
        if held is None:
            return None
        upload.sent = {number: part for number, part in upload.sent.items() if held.get(number) == part.etag}
        return upload

    def _held(self, upload: Upload) -> dict[int, str] | None:
        """ETags of the parts that the server has; None where it does not know the upload."""
        held: dict[int, str] = {}
        marker = 0
        while True:
            try:
                answer = self._requests.asked(
                    "list_parts", Tries(), Key=upload.name, UploadId=upload.id, PartNumberMarker=marker
                )
            except Exception as error:
                if code_of(error) in GONE:
                    return None
                raise self._requests.translated(error, f"store {upload.name}") from error
            held.update((part["PartNumber"], part["ETag"]) for part in answer.get("Parts", []))
            if not answer.get("IsTruncated"):
                return held
            marker = answer["NextPartNumberMarker"]

    def _begin(self, name: str) -> Upload:
        """A new upload. Where an answer was lost, that other upload is aborted."""
        asked, writer = Tries(), new_writer()
        answer = self._requests.call(
            f"store {name}", "create_multipart_upload", asked, Key=name, Metadata=writer
        )
        upload = Upload(name, answer["UploadId"], writer)
        if asked.repeated:
            for other in self._requests.uploads(name):
                if other["Key"] == name and other["UploadId"] != upload.id:
                    self._requests.try_abort(name, other["UploadId"])
        return upload

    # ------------------------------------------------------------------ parts

    def _parts(self, upload: Upload, first: bytes, reader: Reader) -> Iterable[SentPart]:
        """Send what the server does not have yet; all parts."""

        def send(number: int, body: bytes) -> SentPart:
            digest = hashlib.sha256(body).digest()
            part = upload.has(number, body, digest)
            if part is None:
                answer = self._requests.call(
                    f"store {upload.name}",
                    "upload_part",
                    Key=upload.name,
                    UploadId=upload.id,
                    PartNumber=number,
                    data=body,
                )
                part = upload.sent[number] = SentPart(number, len(body), digest, answer["ETag"])
            return part

        return _in_order(self._pool, self._most, send, first, reader)


def _in_order(
    pool: ThreadPoolExecutor,
    most: int,
    send: Callable[[int, bytes], SentPart],
    body: bytes,
    reader: Reader,
) -> list[SentPart]:
    """Results of `send` for each part, of which at most this many are under way at a time."""
    under_way: deque[Future[SentPart]] = deque()
    done: list[SentPart] = []
    number = 1
    try:
        while body:
            under_way.append(pool.submit(send, number, body))
            while len(under_way) >= (most if number > _AT_FIRST else min(most, _UPLOADS_AT_FIRST)):
                done.append(under_way.popleft().result())
            number += 1
            body = read_exactly(reader, part_size(number))
        done.extend(future.result() for future in under_way)
    finally:
        for future in under_way:
            future.cancel()
        for future in under_way:
            if not future.cancelled():
                future.exception()  # a part must not arrive after the upload was given up
    return done


def read_exactly(reader: Reader, size: int) -> bytes:
    """Exactly `size` bytes, or fewer at the end."""
    parts: list[bytes] = []
    while size and (part := reader.read(min(size, CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
