"""Dropout masks by a hash: which elements are kept depends on (seed, step, place) and the element alone.

They are the same on every device, for any number of ranks and however a batch is split, and nothing about
them has to be saved. All arithmetic is in int32 and wraps around.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SITE_FACTOR = 0x9E3779B9  # 2^32 over the golden ratio
_BITS = 16
"""Of the hash that decide: a probability is met to 1 / 65536."""


def threshold(p: float) -> int:
    """Elements whose low 16 bits of the hash are below this are dropped."""
    return int(p * (1 << _BITS))


def signed(value: int) -> int:
    """The int32 with the low 32 bits of `value`."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def site_offset(site: int) -> int:
    """What is added to a step's seed for the place number `site` in the model."""
    return signed(site * _SITE_FACTOR)


def mix(x: Tensor) -> Tensor:
    """A bijection of int32 that looks random: "lowbias32" (C. Wellons, "Prospecting for hash functions")."""
    x = x ^ _shifted(x, 16)
    x = x * signed(0x7FEB352D)
    x = x ^ _shifted(x, 15)
    x = x * signed(0x846CA68B)
    return x ^ _shifted(x, 16)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def stored(x: Tensor) -> Tensor:
    """x, which a CPU's compiler then keeps in memory instead of computing it wherever it is used."""
    return x.as_strided(x.shape, x.stride()) if x.device.type == "cpu" else x


def keep_mask(shape: Sequence[int], noise: Tensor, site: int, p: float) -> Tensor:
    """Which elements of a tensor (sequences, ..., columns) are kept, as booleans.

    `noise` is int32 (3,): the step's seed, the number in the whole batch of the first sequence here, and the
    distance to the next. A row's number is that in the tensor of the whole batch, modulo 2^32; it is hashed
    with the seed and the place, and the column is stirred in with the second half of `mix`.
    """
    seed, first, distance = noise.unbind()
    number = torch.zeros((), dtype=torch.int32, device=noise.device)
    for axis, length in enumerate(shape[:-1]):
        place = torch.arange(length, dtype=torch.int32, device=noise.device)
        if axis == 0:
            place = first + place * distance
        number = number[..., None] * length + place
    row = stored(mix(number ^ mix(seed + site_offset(site))))
    column = torch.arange(shape[-1], dtype=torch.int32, device=noise.device) * signed(_SITE_FACTOR)
    x = row[..., None] + column
    x = (x ^ _shifted(x, 15)) * signed(0x846CA68B)
    return _shifted(x, 16) >= threshold(p)
