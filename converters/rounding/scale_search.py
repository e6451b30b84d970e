"""Scale search: for each block, the scale whose nearest rounding has the least squared error.

Absmax scales spend the grid's range on the largest weight. A somewhat smaller scale clips it and
rounds all the others more finely; whether that pays is tried, block by block, over multiples of the
absmax scale, each re-rounded to what the format can store. Each column's squared error may be
weighted by how much it matters to the layer's outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import block_view, expand_scale
from ...layouts.codec import encode, nearest_values
from ...layouts.geometries import Geometry, Scales
from ...layouts.grids import Grid
from .problem import Poll
from .quantizer import rounder

MULTIPLES = tuple(0.6 + 0.02 * step for step in range(26))
_WEIGHTS_IN_CACHE = 1 << 17


def scale_search(
    w: Tensor,
    grid: Grid,
    geometry: Geometry,
    tensor_absmax: Tensor | None = None,
    importance: Tensor | None = None,
    poll: Poll | None = None,
) -> tuple[Tensor, Scales]:
    """Round each weight to the nearest code under searched scales.

    Args:
        w: float32 ``[M, N]``, transformed and padded; overwritten.
        grid: the grid to round to.
        geometry: which weights share a scale. Where one scale serves the whole matrix, ``w`` is all
            of it.
        tensor_absmax: largest magnitude of the whole matrix, float32 ``[]``, where the geometry
            needs it.
        importance: float32 ``[N]``, the weight of each column's squared error (the diagonal of the
            activations' second moment), or None.
        poll: called many times a second; an exception it raises ends the search.

    Returns:
        Codes ``[M, N]`` and scales; never a larger error than :func:`nearest`.
    """
    best = best_scales(w, grid, geometry, tensor_absmax, importance, poll)
    return encode(w, grid, best, inplace=True), best


def best_scales(
    w: Tensor,
    grid: Grid,
    geometry: Geometry,
    tensor_absmax: Tensor | None = None,
    importance: Tensor | None = None,
    poll: Poll | None = None,
    multiples: tuple[float, ...] = MULTIPLES,
) -> Scales:
    """The scales of :func:`scale_search` among ``multiples`` of absmax's; ``w`` is kept."""
    start = geometry.scales(w, grid, tensor_absmax)
    m, n = w.shape
    mb = start.block.shape[0]
    rows = m // max(mb, 1)
    step = max(_WEIGHTS_IN_CACHE // max(n, 1), 1)
    if mb > 1:  # whole blocks of rows
        together = max(rows, geometry.run(n))
        step = -(-step // together) * together
    found: list[Tensor] = []
    errors: Tensor | None = None
    for first in range(0, m, step):
        part = w[first : first + step]
        covered = slice(first // rows, max(-(-(first + part.shape[0]) // rows), 1))
        mine = start.rows(covered)
        tried = geometry.rule.candidates(mine, multiples)
        lost = _block_errors(part, grid, mine, tried, importance, poll)
        lost = geometry.over_runs(lost, n, "sum")
        if mb > 1:
            found.append(_least(tried, lost))
        else:  # one block of rows, in several parts
            errors = lost if errors is None else errors + lost
    if errors is not None:
        found.append(_least(geometry.rule.candidates(start, multiples), errors))
    return start._replace(block=torch.cat(found)) if found else start


def _least(tried: list[Tensor], errors: Tensor) -> Tensor:
    """Of the scales ``[mb, Nb]`` tried, those with the least of ``errors [tries, mb, Nb]``."""
    return torch.stack(tried).gather(0, errors.argmin(dim=0, keepdim=True))[0]


def _block_errors(
    w: Tensor,
    grid: Grid,
    start: Scales,
    tried: list[Tensor],
    importance: Tensor | None,
    poll: Poll | None,
) -> Tensor:
    """Squared error of each block under each scale tried: ``[tries, mb, Nb]``."""
    m, n = w.shape
    mb, nb = tried[0].shape
    blocks = block_view(w, m // mb, n // nb)
    weight = None if importance is None else importance.view(1, 1, nb, n // nb)
    round_ = rounder(grid)
    errors = []
    for block in tried:
        if poll is not None:
            poll()
        scales = start._replace(block=block)
        if scales.between is not None:
            values = nearest_values(w, grid, scales).view(blocks.shape)
        else:
            scale = expand_scale(scales.effective)
            values = round_((blocks * torch.where(scale == 0, 0.0, 1.0 / scale)).view(m, n))
            values = values.view(blocks.shape).mul_(scale)
        lost = values.sub_(blocks).square_()
        if weight is not None:
            lost.mul_(weight)
        errors.append(lost.sum(dim=3).sum(dim=1))
    return torch.stack(errors)
