"""Object stores: keys to bytes, with create-only writes.

The whole surface of a backend is :class:`~orchestrator.store.protocol.ObjectStore`. :func:`open_store`
picks the backend by the scheme of the URI; the run log and the checkpoints are written against the
protocol.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.errors import DamagedError, NotFoundError, SetupError
from orchestrator.store.file_store import FileStore
from orchestrator.store.probe import probe
from orchestrator.store.protocol import IDENTITY_KEY, ObjectInfo, ObjectStore, Source, read_bytes
from orchestrator.store.s3_store import S3Store

__all__ = ["ObjectInfo", "ObjectStore", "Source", "open_store", "probe", "read_bytes", "store_id"]


def open_store(uri: str | Path) -> ObjectStore:
    """The store at `file:///absolute/path`, `s3://bucket/prefix` or a plain path. Does not touch it yet.

    SetupError for a scheme that nothing here speaks.
    """
    text = str(uri)
    scheme = urlsplit(text).scheme if "://" in text else "path"
    opener = _OPENERS.get(scheme)
    if opener is None:
        raise SetupError(
            f"{_redacted(text)}: stores of kind {scheme}:// are not supported",
            remedy=f"Use one of: {', '.join(f'{name}://' for name in _OPENERS if name != 'path')} or a path.",
        )
    return opener(text)


def _open_path(text: str) -> ObjectStore:
    return FileStore(Path(text).expanduser().absolute())


def _open_file(text: str) -> ObjectStore:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise SetupError(
            f"{_redacted(text)} does not name a folder of this machine",
            remedy="Write three slashes and an absolute path, as in file:///srv/orch.",
        )
    return _open_path(unquote(parts.path))


_OPENERS: dict[str, Callable[[str], ObjectStore]] = {
    "file": _open_file,
    "s3": S3Store,
    "path": _open_path,
}


def _redacted(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", uri)


def store_id(store: ObjectStore, create: bool = False) -> str:
    """The identity of a store, the same for everybody who reaches it by whatever path.

    With `create` a store that has none gets one; of several that do so at once all get the same answer.
    Without, NotFoundError says that this is no store of ours (or that it is not mounted).
    """
    if create:
        store.prepare()
    try:
        return _parse_id(store, read_bytes(store, IDENTITY_KEY))
    except NotFoundError:
        if not create:
            raise NotFoundError(
                f"{store.uri} holds no object store: {IDENTITY_KEY} is missing",
                remedy="Check that it is mounted, and that the path is the one the controller uses.",
            ) from None
    store.put(IDENTITY_KEY, json.dumps({"id": str(uuid.uuid4())}).encode() + b"\n", create_only=True)
    return _parse_id(store, read_bytes(store, IDENTITY_KEY))


def _parse_id(store: ObjectStore, data: bytes) -> str:
    try:
        return str(uuid.UUID(json.loads(data)["id"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{store.uri}: {IDENTITY_KEY} cannot be read: {data[:100]!r}",
            remedy="Bring this small file back from a copy of the store; no checkpoint depends on it.",
        ) from error
