"""What a disk holds after power loss, as far as POSIX promises it.

Contents of a file survive once it was synced, a name once the folder that has it was synced; anything else
may be there or not. The model watches the calls of the `os` module below a folder and can lay out, at any
moment, the least that survives, and layouts in which more names than that have reached the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Names = dict[str, int]
"""Names in a folder -> inode."""


class DiskModel:
    """Follows what is durable below `root`; everything there at the beginning is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}
        self.names: dict[int, Names] = {}
        self._busy = False
        """True while a call is being looked at, which makes calls of its own."""
        self._root = root.stat().st_ino
        for folder, _, files in os.walk(root):
            self._sync_folder(Path(folder))
            for name in files:
                path = Path(folder) / name
                self.contents[path.stat().st_ino] = path.read_bytes()

    @contextmanager
    def watching(self, monkeypatch: Any, moment: Callable[[str], None]) -> Iterator[None]:
        """Follow all calls in this block; `moment` is called before each one that changes something."""
        with monkeypatch.context() as patch:
            for name in ("open", "write", "fsync", "link", "replace", "mkdir", "unlink", "rmdir"):
                patch.setattr(os, name, self._wrapped(name, getattr(os, name), moment))
            yield

    def _wrapped(
        self, name: str, real: Callable[..., Any], moment: Callable[[str], None]
    ) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            changes = name != "open" or (len(args) > 1 and args[1] & os.O_CREAT)
            if self._busy or not changes:
                return real(*args, **kwargs)
            self._busy = True
            try:
                moment(name)
                result = real(*args, **kwargs)
                self._after(name, args, result)
                return result
            finally:
                self._busy = False

        return call

    def _after(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "open":
            # Inode numbers are used again.
            self.contents.pop(os.fstat(result).st_ino, None)
        elif name == "mkdir":
            self.names[os.stat(args[0]).st_ino] = {}
        elif name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{args[0]}"))
            if path.is_dir():
                self._sync_folder(path)
            else:
                self.contents[path.stat().st_ino] = path.read_bytes()

    def _sync_folder(self, folder: Path) -> None:
        self.names[folder.stat().st_ino] = {entry.name: entry.inode() for entry in os.scandir(folder)}

    # ------------------------------------------------------------------ after the power loss

    def least(self, target: Path) -> None:
        """Lay out only what must be there."""
        self._lay_out(self._root, target, self.names)

    def with_names(self, target: Path, early: Callable[[Path], bool]) -> None:
        """Lay out what must be there, plus all present names in the folders that `early` picks."""
        names = dict(self.names)
        for folder, _, _ in os.walk(self.root):
            path = Path(folder)
            if early(path):
                present = {entry.name: entry.inode() for entry in os.scandir(path)}
                names[path.stat().st_ino] = {**names.get(path.stat().st_ino, {}), **present}
        self._lay_out(self._root, target, names)

    def _lay_out(self, inode: int, target: Path, names: dict[int, Names]) -> None:
        target.mkdir()
        for name, below in names.get(inode, {}).items():
            if below in names:
                self._lay_out(below, target / name, names)
            else:
                (target / name).write_bytes(self.contents.get(below, b""))
