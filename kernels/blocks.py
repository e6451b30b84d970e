"""Matrices whose elements share scales by rectangular blocks.

A scale grid ``[Mb, Nb]`` over a matrix ``[M, N]`` gives each ``(M / Mb) × (N / Nb)`` block one scale;
tensor, row, row-block and 2-D block scaling are all this, with other block sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_view(x: Tensor, rows: int, cols: int) -> Tensor:
    """View ``x [M, N]`` as ``[M/rows, rows, N/cols, cols]``; both must divide."""
    m, n = x.shape
    return x.view(m // rows, rows, n // cols, cols)


def blockwise_absmax(x: Tensor, rows: int, cols: int) -> Tensor:
    """Largest magnitude of each block: ``x [M, N]`` → ``[M/rows, N/cols]``. NaN and Inf propagate."""
    m, n = x.shape
    if rows == 1 or rows == m:  # one contiguous reduction each, several times faster than two dims
        low, high = x.view(-1, n // cols, cols).aminmax(dim=-1)
        peak = torch.maximum(low.neg_(), high)
        return peak if rows == 1 else peak.amax(dim=0, keepdim=True)
    low, high = block_view(x, rows, cols).aminmax(dim=-1)
    return torch.maximum(low.neg_(), high).amax(dim=1)


def expand_scale(scale: Tensor) -> Tensor:
    """Make a scale grid ``[Mb, Nb]`` broadcast against ``block_view``: ``[Mb, 1, Nb, 1]``."""
    return scale[:, None, :, None]


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Decode ``codes [M, N]`` (a castable dtype) with ``scale [Mb, Nb]``: float32 ``[M, N]``."""
    m, n = codes.shape
    mb, nb = scale.shape
    if m == 0 or n == 0:
        return torch.zeros(m, n, dtype=torch.float32, device=codes.device)
    values = codes.to(torch.float32, copy=True)
    return block_view(values, m // mb, n // nb).mul_(expand_scale(scale.float())).view(m, n)
