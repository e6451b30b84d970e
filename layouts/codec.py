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
    """Round ``w`` to the codes whose values are nearest under ``scales``.

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
    if scales.between is not None:
        return grid.round(_nearest_between(w, grid, scales, generator)[0])
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
    return combine(grid.decode(codes), scales)


def combine(values: Tensor, scales: Scales) -> Tensor:
    """What grid values ``[M, N]`` stand for under ``scales``, float32 ``[M, N]``."""
    m, n = values.shape
    block = scales.block if scales.between is not None else scales.effective
    blocks = block_view(values, m // block.shape[0], n // block.shape[1])
    scaled = blocks * expand_scale(block)
    if scales.between is not None:
        assert scales.tensor is not None
        scaled = scales.between.nearest_values(scaled).mul_(_outer(scales.tensor))
    return scaled.view(m, n)


def nearest_values(w: Tensor, grid: Grid, scales: Scales) -> Tensor:
    """What ``w [M, N]`` decodes to once it is encoded where scales round between their levels."""
    return _nearest_between(w, grid, scales, None)[1]


def _outer(tensor: Tensor) -> Tensor:
    """An outer scale ``[]`` or ``[Mb, 1]`` that broadcasts against a block view."""
    return tensor if tensor.ndim == 0 else expand_scale(tensor)


def _nearest_between(
    w: Tensor, grid: Grid, scales: Scales, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Grid values whose decoded values are nearest to ``w``, and those; both ``[M, N]``.

    Rounding is monotone, so one of the grid's two values beside the exact one is nearest. Which one
    depends on what they are rounded to.
    """
    m, n = w.shape
    assert scales.between is not None
    assert scales.tensor is not None
    block, outer = expand_scale(scales.block), _outer(scales.tensor)
    target = block_view(w, m // scales.block.shape[0], n // scales.block.shape[1]) / torch.where(
        outer == 0, torch.inf, outer
    )
    low, high = grid.neighbours(target / torch.where(block == 0, torch.inf, block))
    below = scales.between.nearest_values(low * block)
    above = scales.between.nearest_values(high * block)
    if generator is None:
        up = (above - target).abs_() < (target - below).abs_()
    else:
        noise = torch.rand(target.shape, generator=generator, device=w.device)
        up = (target - below) > noise.mul_(above - below)
    values = torch.where(up, high, low).view(m, n)
    return values, torch.where(up, above, below).mul_(outer).view(m, n)


def with_peak(codes: Tensor, grid: Grid, scales: Scales) -> Scales:
    """``scales`` with the largest magnitude that ``codes`` decode to."""
    values = decode(codes, grid, scales)
    peak = values.abs().amax() if values.numel() else values.new_zeros(())
    return scales._replace(peak=peak)


def pad(w: Tensor, rows: int, cols: int) -> Tensor:
    """Pad ``w [M, N]`` with zeros to multiples of ``rows`` and ``cols``; itself where it fits."""
    m, n = w.shape
    if m % rows == 0 and n % cols == 0:
        return w
    return torch.nn.functional.pad(w, (0, -n % cols, 0, -m % rows))
