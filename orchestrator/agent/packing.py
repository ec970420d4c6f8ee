"""A compiled step as one archive, and back: what comes out of the store is trusted no further than needed.

The archive is a plain tar of regular files. Links, devices, sparse files, absolute names and ``..`` are
refused before anything is written, and so is what is more than the archive itself could hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Final

from orchestrator.errors import DamagedError

ENTRY: Final = "entry.json"
"""The file of an entry that says what it is; without it there is none."""
_FILES_MOST: Final = 20_000
_ENTRY_MOST: Final = 1 << 20


def pack(folder: Path, archive: Path) -> None:
    """Write the files of an entry into a new archive; their owners and times are left out.

    Raises:
        DamagedError: a file is not what ``entry.json`` says.
        OSError: a file is gone, or the archive cannot be written.
    """
    check_entry(folder)
    with tarfile.open(archive, "w:", format=tarfile.PAX_FORMAT) as tar:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.is_symlink():
                with file.open("rb") as opened:
                    member = tarfile.TarInfo(file.relative_to(folder).as_posix())
                    member.size = os.fstat(opened.fileno()).st_size
                    tar.addfile(member, opened)


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of an archive into a new folder.

    Raises:
        DamagedError: it is no archive of an entry, or one that could write elsewhere; the message says why.
        OSError: the files cannot be written.
    """
    folder.mkdir()
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in _harmless(tar, archive.stat().st_size):
                source = tar.extractfile(member)
                assert source is not None  # it is a regular file
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("xb") as out:
                    shutil.copyfileobj(source, out)
    except (tarfile.TarError, EOFError, ValueError, FileExistsError, NotADirectoryError) as error:
        raise DamagedError(f"the archive of a compiled step cannot be unpacked: {error}") from error
    check_entry(folder)


def check_entry(folder: Path) -> None:
    """DamagedError where a file is not what ``entry.json`` says, or that is missing."""
    try:
        with (folder / ENTRY).open("rb") as file:
            sums = json.loads(file.read(_ENTRY_MOST))["sha256"]
        for name, expected in sums.items():
            with (folder / PurePosixPath(name).name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise DamagedError(f"{name} of a compiled step is damaged")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DamagedError(f"a compiled step lacks its file {Path(error.filename).name}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{ENTRY} of a compiled step is damaged") from error


def _harmless(tar: tarfile.TarFile, size: int) -> list[tarfile.TarInfo]:
    """The files in an archive of `size` bytes. DamagedError where it has anything else, or too much."""
    found: list[tarfile.TarInfo] = []
    total = 0
    for member in tar:
        name = member.name
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise DamagedError(f"the archive of a compiled step has a file {name[:200]!r}")
        if not member.isreg() or member.issparse():
            raise DamagedError(f"the archive of a compiled step has {name[:200]!r}, which is no plain file")
        found.append(member)
        total += member.size
        if total > size or len(found) > _FILES_MOST:
            raise DamagedError("the archive of a compiled step has more in it than it could hold")
    return found
