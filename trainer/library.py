"""Programs as native libraries: made by PyTorch's AOTInductor, called without Python's lock.

A library is one ``.pt2`` file. Loading one takes milliseconds and needs no compiler, not even the import of
PyTorch's. It is called through AOTInductor's C interface (torch/csrc/inductor/aoti_runtime/interface.h), so
that threads run it side by side.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_CREATE = "AOTInductorModelContainerCreateWithDevice"
_DELETE = "AOTInductorModelContainerDelete"
_RUN = "AOTInductorModelContainerRun"
_RUN_ALONE = "AOTInductorModelContainerRunSingleThreaded"


class LibraryError(Exception):
    """A library cannot be loaded, or failed."""


def build(program: ExportedProgram, file: Path, options: dict[str, Any]) -> None:
    """Compile a program of tensors on one device into `file`; takes tens of seconds.

    `options` are torch._inductor.config's.
    """
    import torch._inductor

    torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)


class Library:
    """A loaded program, which changes tensors that it is given and returns nothing.

    Up to `callers` threads may call it at once; on a GPU one, whose calls can be recorded in a CUDA graph.
    """

    def __init__(self, file: Path, device: torch.device, callers: int = 1) -> None:
        self._on_gpu = device.type == "cuda"
        self._folder = Path(tempfile.mkdtemp(prefix="trainer-library-"))
        try:
            library = _unpack(file, self._folder)
            self._run = self._load(library, device, callers)
        except (OSError, AttributeError, zipfile.BadZipFile) as e:
            raise LibraryError(f"{file} cannot be loaded: {e}") from e
        finally:
            if not self._on_gpu:  # a GPU's kernels are read when they are first called
                shutil.rmtree(self._folder, ignore_errors=True)

    def __call__(self, *tensors: Tensor) -> None:
        """Run it.

        Raises:
            LibraryError: it failed; PyTorch has written the reason to stderr.
        """
        capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
        handles = (ctypes.c_void_p * len(capsules))(*map(_address, capsules))
        stream = torch.cuda.current_stream().cuda_stream if self._on_gpu else None
        # The handles are given away; there are no results.
        if self._run(self._container, handles, len(capsules), None, 0, stream, None):
            raise LibraryError("a compiled program failed")

    def close(self) -> None:
        """Drop what it needed on disk."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _load(self, library: Path, device: torch.device, callers: int) -> Any:
        loaded = ctypes.CDLL(str(library))
        create = getattr(loaded, _CREATE)
        create.argtypes = (
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_size_t,
            ctypes.c_char_p,
            ctypes.c_char_p,
        )
        run = getattr(loaded, _RUN_ALONE if self._on_gpu else _RUN)
        pointers = ctypes.POINTER(ctypes.c_void_p)
        run.argtypes = (
            ctypes.c_void_p,
            pointers,
            ctypes.c_size_t,
            pointers,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self._container = ctypes.c_void_p()
        folder = str(library.parent).encode()
        if create(ctypes.byref(self._container), callers, device.type.encode(), folder):
            raise LibraryError(f"{library.name} does not fit this machine")
        return run


def _unpack(file: Path, folder: Path) -> Path:
    """Extract all files into `folder`; the library among them."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as source, (folder / Path(name).name).open("wb") as target:
                shutil.copyfileobj(source, target)
    libraries = list(folder.glob("*.so"))
    if len(libraries) != 1:
        raise OSError(f"{len(libraries)} libraries in it, expected one")
    return libraries[0]


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _address(capsule: Any) -> int | None:
    address: int | None = _pointer(capsule, None)
    return address
