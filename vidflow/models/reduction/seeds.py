"""Random numbers that depend only on a sample: not on its batch, its device or the state of a generator.

They come from a counter-based hash, so a random reducer is a pure function and stays inside a compiled graph.

Axes: B samples, N numbers.
"""

import hashlib

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

# The constants of SplitMix64 as signed 64-bit integers; products wrap around.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def seed_of_key(key: str) -> int:
    """Return the 63-bit seed of a clip's content key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def content_seeds(frames: UInt8[Tensor, "B ..."]) -> Int[Tensor, " B"]:
    """Return a seed per frame that depends only on its pixels; integer sums are the same in any order."""
    pixels = frames.flatten(1).long() + 1
    return _mix((pixels * _mix(torch.arange(pixels.shape[1], device=pixels.device))).sum(1))


def reseed(seeds: Int[Tensor, " B"], seed: int) -> Int[Tensor, " B"]:
    """Return the samples' seeds for another draw; draw 0 keeps them unchanged."""
    return seeds ^ (seed * (_GOLDEN + (1 << 64)) & ((1 << 63) - 1))


def uniform(seeds: Int[Tensor, " B"], num: int, *, stream: int) -> Float[Tensor, "B N"]:
    """Return uniform numbers in [0, 1) with 24 random bits.

    Args:
        seeds: Seed of each sample.
        num: Numbers per sample.
        stream: Number of the draw, such as the block's index; different streams are independent.

    Source: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), section 3, used as a hash of seed, stream and counter.
    """
    # Not arange: Inductor folds the product of arange and a constant into its code, where the constant overflows.
    counter = torch.ones_like(seeds[:1]).expand(num).cumsum(0) - 1 + (stream << 32)
    return (_mix(_mix(seeds).unsqueeze(1) + counter * _GOLDEN) >> 40 & 0xFFFFFF).float() / (1 << 24)


def _mix(state: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    state = state + _GOLDEN
    state = (state ^ _shift(state, 30)) * _MIX_1
    state = (state ^ _shift(state, 27)) * _MIX_2
    return state ^ _shift(state, 31)


def _shift(state: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Shift right and fill with zeros; torch fills with the sign bit."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


__all__ = ["content_seeds", "reseed", "seed_of_key", "uniform"]
