"""Files of a checkpoint that a malicious program could have written and committed, with right hashes."""

from __future__ import annotations

import functools
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import torch


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._trace,)


def pickles(trace: Path) -> dict[str, bytes]:
    """Files that create `trace` when anything unpickles them: plain, and PyTorch's formats."""
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"wte.weight": Bomb(trace)}, new)
    torch.save({"wte.weight": Bomb(trace)}, old, _use_new_zipfile_serialization=False)
    plain = {f"pickle {protocol}": pickle.dumps(Bomb(trace), protocol) for protocol in (0, 2, 5)}
    return {**plain, "torch zip": new.getvalue(), "torch legacy": old.getvalue()}


def _file(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; the length of its header may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _tensor(
    dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: object
) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@functools.cache
def safetensors() -> dict[str, bytes]:
    """Files with headers that lie, overflow, nest, or say nonsense."""
    body = bytes(8)
    one = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    headers: dict[str, tuple[object, bytes]] = {
        "beyond the end": ({"a": _tensor(offsets=(0, 1 << 40))}, body),
        "backwards": ({"a": _tensor(offsets=(8, 0))}, body),
        "negative offset": ({"a": _tensor(offsets=(-8, 0))}, body),
        "overlapping": ({"a": _tensor(), "b": _tensor(offsets=(4, 12))}, bytes(12)),
        "a gap": ({"a": _tensor(), "b": _tensor(offsets=(16, 24))}, bytes(24)),
        "hidden bytes": ({"a": _tensor()}, bytes(16)),
        "negative shape": ({"a": _tensor(shape=(-2,))}, body),
        "overflowing shape": ({"a": _tensor(shape=(1 << 40, 1 << 40))}, body),
        "overflowing shape of nothing": ({"a": _tensor(shape=(0, 1 << 63), offsets=(0, 0))}, b""),
        "huge shape of nothing": ({"a": _tensor(shape=(0, 1 << 62), offsets=(0, 0))}, b""),
        "shape beyond 64 bits": ({"a": _tensor(shape=(1 << 64,))}, body),
        "fractional shape": ({"a": _tensor(shape=(2.0,))}, body),
        "many dimensions": ({"a": _tensor(shape=[1] * 100_000 + [2])}, body),
        "one name twice": (b"{%s,%s}" % (one, one), body),
        "two sizes of one name": (b"{%s,%s}" % (one, one.replace(b"8]", b"4]")), body),
        "one field twice": (b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,8]}}', body),
        "deep": (b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}", body),
        "deep metadata": (b'{"__metadata__":' + b'{"a":' * 99_999 + b"1" + b"}" * 99_999 + b"}", b""),
        "unknown type": ({"a": _tensor(dtype="F33")}, body),
        "exotic type": ({"a": _tensor(dtype="F8_E8M0", shape=(8,))}, body),
        "half a byte each": ({"wte.weight": _tensor(dtype="F4", shape=(16,))}, body),
        "complex": ({"wte.weight": _tensor(dtype="C64", shape=(1,))}, body),
        "packed type": ({"a": _tensor(dtype="F6_E2M3", shape=(4,), offsets=(0, 3))}, bytes(3)),
        "not UTF-8": (b'{"\xff\xfe":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', body),
        "half a surrogate": (b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', body),
        "no name": ({"": _tensor()}, body),
        "a path": ({"../../etc/passwd": _tensor()}, body),
        "a long name": ({"x" * 1_000_000: _tensor()}, body),
        "unknown field": ({"a": _tensor(code="import os")}, body),
        "a list": (b"[]", b""),
        "null": (b"null", b""),
        "NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', body),
        "nothing in it": ({}, b""),
        "20,000 names": ({str(n): _tensor(shape=(0,), offsets=(0, 0)) for n in range(20_000)}, b""),
    }
    lengths = (0, 1, 3, 1 << 20, 99_999_999, (1 << 63) - 1, (1 << 64) - 1)
    return {
        "empty": b"",
        "seven bytes": bytes(7),
        "zeros": bytes(5000),
        **{f"a header of {length} bytes": _file(b"{}", length=length) for length in lengths},
        **{name: _file(*made) for name, made in headers.items()},
    }


@functools.cache
def json_texts() -> dict[str, bytes]:
    """Texts that are hard on who reads JSON."""
    return {
        "empty": b"",
        "deep lists": b"[" * 1_000_000,
        "deep objects": b'{"a":' * 300_000 + b"1" + b"}" * 300_000,
        "an endless number": b'{"step":' + b"9" * 2_000_000 + b"}",
        "a huge exponent": b'{"step":1e999999999}',
        "zeros": bytes(10_000),
        "not UTF-8": b'{"step": "\xff\xfe"}',
        "UTF-16": '{"step": "1"}'.encode("utf-16"),
        "a list": b"[1, 2, 3]",
        "a number": b"6",
        "a string": b'"' + b"x" * 1_000_000 + b'"',
        "many keys": b"{" + b",".join(b'"k%d":0' % n for n in range(100_000)) + b"}",
        "more than fits": b'{"step": 1, "x": "' + b"y" * (40 << 20) + b'"}',
    }


STATES: dict[str, dict[str, Any]] = {
    "negative step": {"step": -1},
    "step beyond 64 bits": {"step": 1 << 70},
    "step as text": {"step": "six"},
    "fractional step": {"step": 6.5},
    "no loss": {"probe_loss": float("nan")},
    "endless loss": {"probe_loss": float("inf")},
    "another loss": {"probe_loss": 0.0},
    "negative skip": {"skipped": [{"step": -1, "batches": 1}]},
    "endless skip": {"skipped": [{"step": 0, "batches": 1 << 70}]},
    "many skips": {"skipped": [{"step": 0, "batches": 1}] * 20_000},
    "no vocabulary": {"vocabulary_size": -1},
    "a vocabulary of nobody's": {"vocabulary": "", "vocabulary_size": 1 << 31},
    "vocabulary of half a surrogate": {"vocabulary": "\ud800"},
    "unknown key": {"__reduce__": "os.system"},
    "another dataset": {"dataset_sha256": "0" * 64},
    "no environment": {"environment": None},
    "another shape": {"config": {"n_embd": 1 << 20, "n_head": 2}},
}
"""What a state.json can say that no training has written."""

MODELS: dict[str, dict[str, Any]] = {
    "wide": {"n_embd": 1 << 24},
    "wider than a number": {"n_embd": 1 << 70},
    "deep": {"n_layer": 1 << 40},
    "long": {"block_size": 1 << 40},
    "long, rotary": {"block_size": 1 << 40, "recipe": "fast"},
    "wide, rotary": {"n_embd": 1 << 24, "recipe": "fast"},
    "product beyond 64 bits": {"n_embd": 1 << 40, "block_size": 1 << 19},
}
"""Configurations of models that nobody could have in memory."""
