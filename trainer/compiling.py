"""Compiled steps: made in a process of their own beside training, and kept for later runs on this node.

An entry is the folder ``compiled/KEY`` in the cache folder (see :func:`trainer.corpus.cache_root`):

=================  =============================================================================
``gradient.pt2``   for a CPU: the gradient of one part of a batch, see :mod:`trainer.library`
``update.pt2``     for a CPU: the change of all weights
``gradient.made``  for a GPU: the same two as the compiler keeps them, see :mod:`trainer.in_process`
``update.made``
``*.tensors``      for a GPU: what each of them is called with at the end
``inductor/``      for a GPU: the compiler's own cache. It has the choice of the fastest kernels, and
                   what the programs are made from in some seconds where it could not keep them
``entry.json``     what it was made for, and the SHA-256 of the files, which is checked first
=================  =============================================================================

KEY is a hash of everything that the programs depend on, so entries can be copied between like machines. An
entry counts once its ``entry.json`` is there, which is written last. One that is damaged is removed and made
again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch

from orchestrator.contract import gpu_allowance
from trainer.corpus import cache_root
from trainer.device import keep_to_share
from trainer.in_process import in_process
from trainer.library import Library, LibraryError, build, need_compiler
from trainer.orders import Order, Programs, Sources
from trainer.programs import graph_of
from trainer.verify import verify

_SHARE = "ORCH_GPU_MEMORY"
_LEAST_SHARE = 1 << 30
"""Bytes: twice what CUDA takes for a process."""
GRADIENT, UPDATE, ENTRY = "gradient.pt2", "update.pt2", "entry.json"


def load(order: Order, callers: int) -> Programs | None:
    """The programs of an order from the cache; None where they are not there.

    Raises:
        LibraryError: they were there, but cannot be used; they have been removed.
    """
    folder = _entries() / order.key
    if not (folder / ENTRY).is_file():
        return None
    try:
        for name, expected in json.loads((folder / ENTRY).read_bytes())["sha256"].items():
            if _sha256(folder / name) != expected:
                raise LibraryError(f"{name} is damaged")
        if order.device == "cuda":
            return in_process(order, folder)
        return Programs(Library(folder / GRADIENT, callers), Library(folder / UPDATE))
    except (OSError, ValueError, KeyError, LibraryError) as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise LibraryError(f"the compiled step in {folder} could not be used and was removed: {e}") from e


class Compiler:
    """Compiles one order in another process, at low priority.

    Raises LibraryError where the other process has no place.
    """

    def __init__(self, order: Order) -> None:
        share = share_left() if order.device == "cuda" else {}
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainer.compiling"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                bufsize=0,
                env={**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "1", **share},
            )
        except OSError as e:
            raise LibraryError(f"cannot start the compiler: {e}") from e
        assert self._process.stdin is not None
        # It stays open: its end tells the other process that this one is gone. Where that has ended already,
        # `done` tells why.
        with suppress(BrokenPipeError):
            self._process.stdin.write(order.model_dump_json().encode() + b"\n")

    def done(self) -> bool:
        """Whether it has ended well.

        Raises:
            LibraryError: it failed; the message is the reason.
        """
        code = self._process.poll()
        if code is None:
            return False
        self.close()
        if code:
            self._errors.seek(0)
            if code < 0:
                raise LibraryError(f"compiling it, or trying it out, was ended by {_signal_name(-code)}")
            lines = self._errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
            raise LibraryError(next((line for line in reversed(lines) if _is_reason(line)), lines[-1]))
        return True

    def wait(self) -> None:
        """Return when it has ended well; raises as :meth:`done`."""
        while not self.done():
            try:
                self._process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.terminate()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def share_left() -> dict[str, str]:
    """Variables for the other process, which has to make do with what this one leaves of a share of a GPU."""
    share = os.environ.get(_SHARE)
    if share is None:
        return {}
    taken = int(share) - gpu_allowance(int(share)) + torch.cuda.memory_reserved()
    left = int(share) - taken
    if left < _LEAST_SHARE:
        raise LibraryError(
            f"gpu_memory leaves {max(0, left) >> 20} MiB to compile in, {_LEAST_SHARE >> 20} are needed"
        )
    return {_SHARE: str(left)}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _is_reason(line: str) -> bool:
    return "Error" in line or "error:" in line


def main() -> int:
    """The other process: compiles the order on its standard input, unless it is there already."""
    order = Order.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(10)
    folder = _entries() / order.key
    with _alone(order.key):
        if (folder / ENTRY).is_file():
            return 0
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        if order.device == "cuda":
            if _SHARE in os.environ:
                keep_to_share(int(os.environ[_SHARE]))
            programs = in_process(order, folder, keeping=True)
        else:
            programs = _into_libraries(order, folder)
        # The first call: should it crash, then here. For a GPU the compiler picks its kernels' variants then.
        verify(order, Sources.of(order), programs)
        files = [path for path in folder.iterdir() if path.suffix in (".pt2", ".made", ".tensors")]
        sums = {path.name: _sha256(path) for path in files}
        entry = {"order": order.model_dump(mode="json"), "sha256": sums}
        aside = folder / f".{ENTRY}"
        aside.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        aside.rename(folder / ENTRY)
    return 0


def _into_libraries(order: Order, folder: Path) -> Programs:
    """Compile for a CPU."""
    need_compiler()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    sources = Sources.of(order)
    for name, program, arguments, threads in (
        (GRADIENT, sources.gradient, sources.gradient_arguments, 1),
        (UPDATE, sources.update, sources.update_arguments, order.threads),
    ):
        torch.set_num_threads(threads)
        build(graph_of(program, arguments, "fake"), arguments, folder / name, threads)
    shutil.rmtree(folder / "inductor")
    return Programs(Library(folder / GRADIENT), Library(folder / UPDATE))


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not the buffered reader, whose lock would be held at the end
    os._exit(1)


@contextmanager
def _alone(key: str) -> Iterator[None]:
    """Until the end, no other process on this node compiles the same."""
    with (_entries() / f".{key}.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _entries() -> Path:
    folder = cache_root() / "compiled"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
