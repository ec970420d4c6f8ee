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
from typing import Any

import torch
from torch import Tensor

_CREATE = "AOTInductorModelContainerCreateWithDevice"
_RUN = "AOTInductorModelContainerRun"


_OPTIONS = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
"""The part of a library that calls its kernels takes longer to compile than they do, and little to run."""


class LibraryError(Exception):
    """A library cannot be loaded, or failed."""


def need_compiler() -> None:
    """Find a C++ compiler as :func:`build` will, which else notices late.

    Raises:
        LibraryError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as e:
        raise LibraryError("no C++ compiler; install g++, or name one in the variable CXX") from e


def build(graph: torch.fx.GraphModule, arguments: tuple[Tensor, ...], file: Path, threads: int) -> None:
    """Compile a graph for tensors like the arguments into `file`, for so many threads; takes half a minute.

    What the graph returns is dropped.
    """
    import torch._inductor

    class Silent(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> tuple[()]:
            graph(*inputs)
            return ()

    with torch.no_grad():
        program = torch.export.export(Silent(), arguments)
    options = {**_OPTIONS, "cpp.threads": threads}
    torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)


class Library:
    """A loaded program on the CPU, which changes tensors that it is given and returns nothing.

    Up to `callers` threads may call it at once.
    """

    def __init__(self, file: Path, callers: int = 1) -> None:
        with tempfile.TemporaryDirectory(prefix="trainer-library-") as folder:
            try:
                self._run = self._load(_unpack(file, Path(folder)), callers)
            except (OSError, AttributeError, zipfile.BadZipFile) as e:
                raise LibraryError(f"{file} cannot be loaded: {e}") from e

    def __call__(self, *tensors: Tensor) -> None:
        """Run it.

        Raises:
            LibraryError: it failed; PyTorch has written the reason to stderr.
        """
        capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
        handles = (ctypes.c_void_p * len(capsules))(*map(_address, capsules))
        # The handles are given away; there are no results.
        if self._run(self._container, handles, len(capsules), None, 0, None, None):
            raise LibraryError("a compiled program failed")

    def _load(self, library: Path, callers: int) -> Any:
        loaded = ctypes.CDLL(str(library))
        create = getattr(loaded, _CREATE)
        create.argtypes = (
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_size_t,
            ctypes.c_char_p,
            ctypes.c_char_p,
        )
        run = getattr(loaded, _RUN)
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
        if create(ctypes.byref(self._container), callers, b"cpu", folder):
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
