"""Copying bytes while a thread beside hashes them: hashing takes longer than copying, and each has a core.

What is hashed are the very bytes that are written, from the same buffer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from types import TracebackType
from typing import TYPE_CHECKING, Final

from orchestrator.store.posix import aligned
from orchestrator.store.protocol import CHUNK, IntoReader

if TYPE_CHECKING:
    from hashlib import _Hash


_AHEAD: Final = 2
"""Blocks that may be written and not hashed yet."""
_SMALL: Final = 128 << 10
"""Fewer bytes are hashed on the spot: to tell another thread takes as long."""


def copy_hashed(
    source: Iterator[bytes] | IntoReader, out: FileIO, digest: _Hash, on_bytes: Callable[[int], None]
) -> int:
    """Append a source to a file; how many bytes that were. `digest` has seen them all at the end; `on_bytes`
    is told how many more were written.

    Errors of the source and of the file are passed on as they are; what `digest` has seen is unknown then.
    """
    moved = 0
    with _Beside(digest) as beside:
        for block in _blocks(source):
            beside.update(block)
            write_whole(out, block)
            moved += len(block)
            on_bytes(len(block))
    return moved


def write_whole(out: FileIO, data: bytes | memoryview) -> None:
    """Write everything: a disk with little room left takes a part, and fails at the next call only."""
    view = memoryview(data)
    while view:
        view = view[out.write(view) :]


def _blocks(source: Iterator[bytes] | IntoReader) -> Iterator[bytes | memoryview]:
    """The bytes of a source; each block holds until as many as may wait for their hash have come after it."""
    if not isinstance(source, IntoReader):
        yield from source
        return
    buffers = deque(aligned(CHUNK) for _ in range(_AHEAD + 1))
    while size := source.readinto(buffers[0]):
        yield buffers[0][:size]
        buffers.rotate(-1)


class _Beside:
    """Updates a digest in a thread of its own, block by block; all of them are done when the `with` ends."""

    def __init__(self, digest: _Hash) -> None:
        self._digest = digest
        self._thread = ThreadPoolExecutor(1, "hash")
        self._waiting: deque[Future[None]] = deque()

    def update(self, block: bytes | memoryview) -> None:
        """The block must not change until `_AHEAD` others have been taken."""
        if not self._waiting and len(block) < _SMALL:
            self._digest.update(block)
            return
        self._waiting.append(self._thread.submit(self._digest.update, block))
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def __enter__(self) -> _Beside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for one in self._waiting:
                one.result()
