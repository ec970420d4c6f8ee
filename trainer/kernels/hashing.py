"""The dropout hash of `trainer.dropout` as Triton functions. ``noise`` points to its int32 (3,)."""

import triton
import triton.language as tl


@triton.jit
def mix(x):
    """The finaliser "lowbias32" of uint32 numbers."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def dropout_key(noise, offset):
    """The key of one place in one step; `offset` is `trainer.dropout.site_offset` of it."""
    return mix(tl.load(noise).to(tl.uint32, bitcast=True) + offset)


@triton.jit
def sequence_number(noise, local):
    """The number in the whole batch, uint32, of this rank's sequence `local`."""
    return (tl.load(noise + 1) + local * tl.load(noise + 2)).to(tl.uint32, bitcast=True)


@triton.jit
def row_key(number, key):
    """The key of the row with this uint32 number, of a tensor seen as (rows, columns)."""
    return mix(number ^ key)


@triton.jit
def kept(row, column, THRESHOLD: tl.constexpr):
    """Whether the elements with these row keys and uint32 columns stay."""
    x = row + column * 0x9E3779B9
    x ^= x >> 15
    x *= 0x846CA68B
    return x >= THRESHOLD * 65536
