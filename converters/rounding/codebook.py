"""Codebooks fitted to a layer: the values that codes stand for, for formats that store them.

Weights are brought into the scaled domain under searched scales, and the codebook is moved to where
they lie (Lloyd 1982), each weight counting as much as its error costs the outputs: its scale's
square times its column's importance. Then scales are searched again.

A format's own codebook is better known to the kernels that run it, so it stays where a fitted one
gains less than :data:`WORTH` of the error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import expand_scale
from ...layouts.codec import decode, encode
from ...layouts.geometries import Geometry
from ...layouts.grids import CodebookGrid
from .problem import Poll
from .scale_search import best_scales

WORTH = 0.03
SAMPLE = 1 << 17
"""Weights that are looked at, about."""
_ROUNDS = 2
_STEPS = 30
_BINS = 1 << 13


def fit_codebook(
    w: Tensor,
    grid: CodebookGrid,
    geometry: Geometry,
    importance: Tensor | None = None,
    poll: Poll | None = None,
) -> CodebookGrid:
    """The codebook to round ``w`` to.

    Args:
        w: float32 ``[M, N]``, transformed and padded, or a sample of its rows; kept. Rows that are
            not finite are left out.
        grid: the format's own codebook.
        geometry: which weights share a scale; each has its scale in rows of its own.
        importance: float32 ``[N]``, the weight of each column's squared error, or None.
        poll: called many times a second.

    Returns:
        A codebook of as many values, ascending, of the same largest magnitude; or ``grid``.
    """
    w = w[torch.isfinite(w).all(dim=1)]
    w = w[:: max(w.numel() // SAMPLE, 1)]
    if not bool(w.any()):
        return grid
    if importance is not None and not _usable(importance):
        importance = None
    fitted, gain = _moved(w, grid, geometry, importance, poll)
    if gain < WORTH:
        return grid
    for _ in range(_ROUNDS - 1):
        fitted, _ = _moved(w, fitted, geometry, importance, poll)
    before, after = (_cost(w, g, geometry, importance, poll) for g in (grid, fitted))
    return fitted if after < (1 - WORTH) * before else grid


def _usable(importance: Tensor) -> bool:
    return bool(torch.isfinite(importance).all() & (importance > 0).any())


def _scaled(
    w: Tensor, grid: CodebookGrid, geometry: Geometry, importance: Tensor | None, poll: Poll | None
) -> tuple[Tensor, Tensor]:
    """Weights in the scaled domain, and how much the square of an error there counts; flat."""
    scale = best_scales(w, grid, geometry, importance=importance, poll=poll).effective
    m, n = w.shape
    (mb, nb) = scale.shape
    blocks = expand_scale(scale).expand(mb, m // mb, nb, n // nb).reshape(m, n)
    counts = blocks.square()
    if importance is not None:
        counts = counts * importance.clamp(min=0)
    inverse = torch.where(blocks == 0, 0.0, 1.0 / blocks)
    return (w * inverse).flatten(), (counts / counts.mean().clamp(min=1e-38)).flatten()


def _moved(
    w: Tensor, grid: CodebookGrid, geometry: Geometry, importance: Tensor | None, poll: Poll | None
) -> tuple[CodebookGrid, float]:
    """A codebook moved to the weights by Lloyd's steps, on a histogram; and by what share that
    lowers the error under the scales that were."""
    x, counts = _scaled(w, grid, geometry, importance, poll)
    largest = float(x.abs().max())
    bins = ((x / largest + 1) * ((_BINS - 1) / 2)).round_().long()
    mass = torch.zeros(_BINS, dtype=torch.float64, device=w.device)
    total = mass.clone()
    mass.index_add_(0, bins, counts.double())
    total.index_add_(0, bins, (counts * x).double())
    centres = torch.linspace(-largest, largest, _BINS, dtype=torch.float64, device=w.device)
    values = torch.tensor(sorted(grid.values), dtype=torch.float64, device=w.device)
    errors = []
    for _ in range(_STEPS):
        nearest = torch.bucketize(centres, (values[1:] + values[:-1]) / 2)
        errors.append(float((mass * (centres - values[nearest]).square()).sum()))
        cells = torch.zeros_like(values).index_add_(0, nearest, mass)
        sums = torch.zeros_like(values).index_add_(0, nearest, total)
        values = torch.where(cells > 0, sums / cells.clamp(min=1e-300), values)
    values = values.sort().values
    peak = values.abs().max()
    moved = CodebookGrid.of(grid.name, (values * (grid.max / peak)).float().cpu())
    return moved, 1 - errors[-1] / max(errors[0], 1e-300)


def _cost(
    w: Tensor, grid: CodebookGrid, geometry: Geometry, importance: Tensor | None, poll: Poll | None
) -> float:
    """Weighted squared error of the scaled weights."""
    scales = best_scales(w, grid, geometry, importance=importance, poll=poll)
    lost = decode(encode(w, grid, scales), grid, scales).sub_(w).square_()
    if importance is not None:
        lost.mul_(importance)
    return float(lost.sum(dtype=torch.float64))
