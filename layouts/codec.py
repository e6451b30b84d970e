"""Encode and decode with given scales: the one place where grid and geometry meet."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import block_view, expand_scale
from .geometries import Scales
from .grids import Grid


def encode(
    w: Tensor,
    grid: Grid,
    scales: Scales,
    *,
    generator: torch.Generator | None = None,
    inplace: bool = False,
) -> Tensor:
    """Round ``w`` to the nearest codes under ``scales``.

    Args:
        w: float32 ``[M, N]``, padded to whole blocks.
        grid: the grid to round to.
        scales: scales whose grid divides ``[M, N]``.
        generator: round up or down at random with it instead of to nearest.
        inplace: allow ``w`` to be overwritten.

    Returns:
        Codes ``[M, N]`` of ``grid.dtype``. Blocks with scale 0 get code 0.
    """
    m, n = w.shape
    if m == 0 or n == 0:
        return torch.zeros(m, n, dtype=grid.dtype, device=w.device)
    scale = scales.effective
    scaled = block_view(w if inplace else w.clone(), m // scale.shape[0], n // scale.shape[1])
    factor = torch.where(scale == 0, torch.inf, scale)
    if grid.by_reciprocal:
        scaled.mul_(expand_scale(1.0 / factor))
    else:
        scaled.div_(expand_scale(factor))
    scaled = scaled.view(m, n)
    return grid.round(scaled) if generator is None else grid.round_stochastic(scaled, generator)


def decode(codes: Tensor, grid: Grid, scales: Scales) -> Tensor:
    """Float32 values of ``codes [M, N]`` under ``scales``."""
    m, n = codes.shape
    if m == 0 or n == 0:
        return torch.zeros(m, n, dtype=torch.float32, device=codes.device)
    scale = scales.effective
    values = block_view(grid.decode(codes), m // scale.shape[0], n // scale.shape[1])
    return (values * expand_scale(scale)).view(m, n)


def pad(w: Tensor, rows: int, cols: int) -> Tensor:
    """Pad ``w [M, N]`` with zeros to multiples of ``rows`` and ``cols``; itself where it fits."""
    m, n = w.shape
    if m % rows == 0 and n % cols == 0:
        return w
    return torch.nn.functional.pad(w, (0, -n % cols, 0, -m % rows))
