"""Scale search: for each block, the scale whose nearest rounding has the least squared error.

Absmax scales spend the grid's range on the largest weight. A somewhat smaller scale clips it and
rounds all the others more finely; whether that pays is tried, block by block, over multiples of the
absmax scale, each re-rounded to what the format can store.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels import block_view
from ...layouts.codec import decode, encode
from ...layouts.geometries import Geometry, Scales
from ...layouts.grids import Grid

MULTIPLES = tuple(0.6 + 0.02 * step for step in range(26))
_ROWS_IN_CACHE = 1 << 18


def scale_search(
    w: Tensor,
    grid: Grid,
    geometry: Geometry,
    tensor_absmax: Tensor | None = None,
    importance: Tensor | None = None,
    poll: Callable[[], None] | None = None,
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
    start = geometry.scales(w, grid, tensor_absmax)
    best = start
    least = _block_errors(w, grid, start, importance, poll)
    for multiple in MULTIPLES:
        tried = geometry.rule.snap(start.effective * multiple, start.tensor)
        error = _block_errors(w, grid, tried, importance, poll)
        better = error < least
        least = torch.where(better, error, least)
        best = Scales(torch.where(better, tried.block, best.block), start.tensor)
    return encode(w, grid, best, inplace=True), best


def _block_errors(
    w: Tensor,
    grid: Grid,
    scales: Scales,
    importance: Tensor | None,
    poll: Callable[[], None] | None,
) -> Tensor:
    """Squared error of each block, ``[Mb, Nb]``, a few rows at a time so that they stay in cache.
    """
    m, n = w.shape
    mb, nb = scales.block.shape
    rows = m // mb
    step = max(_ROWS_IN_CACHE // max(n, 1), 1)
    if rows > 1 and mb > 1:  # whole blocks of rows
        step = -(-step // rows) * rows
    errors = torch.zeros(mb, nb, device=w.device)
    for first in range(0, m, step):
        if poll is not None:
            poll()
        part = w[first : first + step]
        covered = slice(first // rows, max(-(-(first + part.shape[0]) // rows), 1))
        mine = Scales(scales.block[covered], scales.tensor)
        lost = decode(encode(part, grid, mine), grid, mine).sub_(part).square_()
        if importance is not None:
            lost *= importance
        blocks = block_view(lost, part.shape[0] // mine.block.shape[0], n // nb)
        errors[covered] += blocks.sum(dim=3).sum(dim=1)
    return errors
