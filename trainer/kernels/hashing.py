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
def kept(element, key, THRESHOLD: tl.constexpr):
    """Whether the elements with these uint32 numbers stay.

    ``mix(element ^ key) & 0xFFFF >= THRESHOLD`` with fewer instructions, which are what dropout costs: the
    key is folded in after the first shift, and the last step leaves the 16 bits at the top.
    """
    x = element ^ (element >> 16) ^ (key ^ (key >> 16))
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return (x ^ (x << 16)) >= THRESHOLD * 65536
