"""Magnitudes counted in logarithmic bins: mergeable, and a percentile is known within one bin.

A bin is the exponent and the first four mantissa bits of ``|x|`` in float32: 16 bins an octave, so
a bin is 3 to 6 % wide, whatever the scale of the data. There are 4096; the last 16 would hold NaN
and Inf, which are never counted.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 4096
_SHIFT = {torch.int32: 19, torch.int16: 3}  # float32 and bfloat16 have the same exponent


def magnitude_bits(x: Tensor) -> Tensor:
    """The bits of ``|x|`` as integers, which are ordered as the magnitudes are.

    Args:
        x: any floating dtype; float32 and bfloat16 are looked at as they are, others as float32.

    Returns:
        int32 or int16 (for bfloat16) of ``x``'s shape, in new memory.
    """
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).bitwise_and(0x7FFF)
    if x.dtype != torch.float32:
        x = x.float()
    return x.view(torch.int32).bitwise_and(0x7FFFFFFF)


def magnitudes(bits: Tensor) -> Tensor:
    """float32 magnitudes from :func:`magnitude_bits`."""
    dtype = torch.bfloat16 if bits.dtype == torch.int16 else torch.float32
    return bits.view(dtype).float()


def histogram(bits: Tensor) -> Tensor:
    """int64 ``[BINS]`` counts of :func:`magnitude_bits`, which are overwritten."""
    index = bits.bitwise_right_shift_(_SHIFT[bits.dtype])
    return torch.bincount(index.reshape(-1), minlength=BINS)


def percentile(counts: Tensor, p: float, largest: float) -> float:
    """The magnitude that ``p`` percent of the counted values do not exceed.

    Args:
        counts: int64 ``[BINS]``.
        p: 0 to 100; 100 is the true maximum.
        largest: the largest magnitude counted.

    Returns:
        A magnitude, interpolated within its bin; 0 where nothing was counted.
    """
    if not 0 <= p <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, not at {p}")
    total = int(counts.sum())
    if p == 100 or total == 0:
        return largest if total else 0.0
    rank = p / 100 * (total - 1)
    upto = counts.cumsum(0)
    index = int(torch.searchsorted(upto, torch.tensor(rank, dtype=torch.float64), right=True))
    inside = int(counts[index])
    part = (rank - (int(upto[index]) - inside) + 0.5) / inside
    low, high = _edge(index), _edge(index + 1)
    return min(low + min(part, 1.0) * (high - low), largest)


def _edge(index: int) -> float:
    return float(torch.tensor(index << 19, dtype=torch.int32).view(torch.float32))
