"""Randomness as a pure function of (seed, stream, step), so that no generator state is ever saved.

PyTorch's CPU generator is an MT19937 that looks only at the low 32 bits of its seed: with a seed such as
``(seed << 32) + step`` every run would draw the same batches, whatever its seed. So the numbers are mixed.
"""

from __future__ import annotations

from enum import IntEnum

_MASK = (1 << 64) - 1


class Stream(IntEnum):
    """What a sequence of random numbers is for. Values are part of what a seed means: never renumber."""

    INIT = 0
    TRAIN = 1
    DROPOUT = 2
    EVAL_TRAIN = 3
    EVAL_VAL = 4
    PROBE = 5
    SAMPLE = 6


def _splitmix64(value: int) -> int:
    """The output function of SplitMix64 (Steele, Lea, Flood, 2014): a bijection of 64-bit integers."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def stream_seed(seed: int, stream: Stream, step: int = 0) -> int:
    """A 63-bit seed whose low 32 bits, too, depend on all of `seed`, `stream` and `step`."""
    mixed = _splitmix64(_splitmix64(_splitmix64(seed & _MASK) ^ stream) ^ step)
    return mixed >> 1
