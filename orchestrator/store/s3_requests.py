"""Requests to one bucket: sent again where that may help, told apart when an answer was lost, errors ours."""

from __future__ import annotations

import contextlib
import threading
import uuid
from typing import Any, Final

from orchestrator.errors import StoreError
from orchestrator.store.s3_client import Place, Tries, answers, connect, retried, sending
from orchestrator.store.s3_errors import code_of, is_refusal, status_of, translate
from orchestrator.store.throttle import Pace

WRITER: Final = "writer"
"""Metadata: who wrote an object. Tells whether a repeated request found what it had written itself."""
EXISTS: Final = frozenset({"PreconditionFailed", "412"})
MISSING: Final = frozenset({"NoSuchKey", "404", "NotFound"})
GONE: Final = frozenset({"NoSuchUpload", "404"})


class Requests:
    """What is asked of the server. `name` is a key with the store's prefix."""

    def __init__(self, place: Place, up: Pace) -> None:
        self.place = place
        self._up = up
        self._lock = threading.Lock()
        self._client: Any = None

    def client(self) -> Any:
        """boto3's, made at the first call."""
        with self._lock:
            if self._client is None:
                self._client = connect(self.place)
            return self._client

    def call(
        self, action: str, operation: str, asked: Tries | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """The answer; errors say that `action` was not possible."""
        try:
            return self.asked(operation, asked or Tries(), **arguments)
        except Exception as error:
            raise self.translated(error, action, operation) from error

    def asked(
        self, operation: str, tries: Tries, *, data: bytes | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """The answer; errors are botocore's. `data` is the body to send, at the pace that is allowed."""

        def ask() -> dict[str, Any]:
            method = getattr(self.client(), operation)
            body = {} if data is None else {"Body": self._up.body(data)}
            with sending(body.get("Body")):
                answer: dict[str, Any] = method(Bucket=self.place.bucket, **body, **arguments)
            return answer

        return retried(ask, tries)

    def written(self, name: str, operation: str, writer: dict[str, str], **arguments: Any) -> bool:
        """Carry out a write; False where its condition did not hold because of somebody else's object."""
        asked = Tries()
        try:
            self.asked(operation, asked, Key=name, **arguments)
        except Exception as error:
            code = code_of(error)
            exists = "IfNoneMatch" in arguments and code in EXISTS
            if asked.repeated and (exists or code in GONE) and self._writer_of(name) == writer[WRITER]:
                return True  # an earlier try was carried out, only its answer was lost
            if exists:
                return False
            raise self.translated(error, f"store {name}", operation) from error
        return True

    def _writer_of(self, name: str) -> str | None:
        found = self.head(name)
        metadata: dict[str, str] = found.get("Metadata", {}) if found else {}
        return metadata.get(WRITER)

    def head(self, name: str) -> dict[str, Any] | None:
        """What the server says about an object, None where there is none."""
        try:
            return self.asked("head_object", Tries(), Key=name)
        except Exception as error:
            if code_of(error) in MISSING or status_of(error) == 404:
                return None
            raise self.translated(error, f"look for {name}") from error

    def uploads(self, prefix: str) -> list[dict[str, Any]]:
        """Multipart uploads that were begun and not ended."""
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            answer = self.call("list uploads", "list_multipart_uploads", Prefix=prefix, **more)
            found += answer.get("Uploads", [])
            if not answer.get("IsTruncated"):
                return found
            more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def sent(self, name: str, upload: str) -> int:
        """Bytes that an unfinished upload holds, as far as one answer tells: at most a thousand parts."""
        try:
            answer = self.asked("list_parts", Tries(), Key=name, UploadId=upload)
        except Exception as error:
            if code_of(error) in GONE:
                return 0
            raise self.translated(error, "list parts") from error
        return sum(part["Size"] for part in answer.get("Parts", []))

    def abort(self, name: str, upload: str) -> None:
        """Give up a multipart upload; one that is not there is fine."""
        try:
            self.asked("abort_multipart_upload", Tries(), Key=name, UploadId=upload)
        except Exception as error:
            if code_of(error) not in GONE:
                raise self.translated(error, f"give up storing {name}") from error

    def try_abort(self, name: str, upload: str) -> None:
        """The same; where it fails, `prepare` removes the upload on a later day."""
        with contextlib.suppress(StoreError):
            self.abort(name, upload)

    def translated(self, error: Exception, action: str, operation: str = "") -> StoreError:
        """The error of ours. Where a write was refused, another request shows whether the server is there."""
        endpoint, bucket = self.place.endpoint or "Amazon S3", self.place.bucket
        refused = is_refusal(error, operation) and answers(self.client(), bucket)
        return translate(error, self.place.uri, bucket, endpoint, action, refused=refused)


def new_writer() -> dict[str, str]:
    """Metadata of a new object."""
    return {WRITER: uuid.uuid4().hex}
