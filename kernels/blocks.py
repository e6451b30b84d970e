"""Matrices whose elements share scales by rectangular blocks.

A scale grid ``[Mb, Nb]`` over a matrix ``[M, N]`` gives each ``(M / Mb) × (N / Nb)`` block one
scale; tensor, row, row-block and 2-D block scaling are all this, with other block sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_view(x: Tensor, rows: int, cols: int) -> Tensor:
    """View ``x [M, N]`` as ``[M/rows, rows, N/cols, cols]``; both must divide."""
    m, n = x.shape
    return x.view(m // rows, rows, n // cols, cols)


def blockwise_absmax(x: Tensor, rows: int, cols: int) -> Tensor:
    """Largest magnitude of each block, ``[M/rows, N/cols]``. NaN and Inf propagate."""
    if rows == 1 or cols == x.shape[1]:  # one contiguous reduction, faster than two dimensions
        step = cols if rows == 1 else rows * cols
        return x.abs().view(-1, step).amax(dim=1).view(x.shape[0] // rows, -1)
    return block_view(x.abs(), rows, cols).amax(dim=(1, 3))


def expand_scale(scale: Tensor) -> Tensor:
    """Make a scale grid ``[Mb, Nb]`` broadcast against ``block_view``: ``[Mb, 1, Nb, 1]``."""
    return scale[:, None, :, None]


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Decode ``codes [M, N]`` (a castable dtype) with ``scale [Mb, Nb]``: ``[M, N]`` of ``dtype``.

    Products are made in float32 and rounded once.
    """
    m, n = codes.shape
    mb, nb = scale.shape
    if m == 0 or n == 0:
        return torch.zeros(m, n, dtype=dtype, device=codes.device)
    values = codes.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    values = block_view(values, m // mb, n // nb).mul_(expand_scale(scale.float())).view(m, n)
    return values.to(dtype)
