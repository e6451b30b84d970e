"""Scales fitted to codes: for given codes, the scale with the least output error.

With ``q`` the grid values of a block and ``E`` the errors of the whole matrix, the error is
quadratic in the block's scale, least at ``s + Σ(E·H)∘q / Σ(q·H_bb)∘q``, sums over the block.
The wish is rounded to a storable scale and taken only where it lowers the error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...layouts.codec import decode, encode
from ...layouts.geometries import Geometry, Scales
from ...layouts.grids import Grid
from .problem import Poll


def refit(
    w: Tensor,
    h: Tensor,
    errors: Tensor,
    grid: Grid,
    geometry: Geometry,
    scales: Scales,
    poll: Poll | None,
) -> Scales:
    """Refit each block's scale in turn.

    Args:
        w: float32 ``[N, M]``, transposed weights.
        h: float32 ``[N, N]``, the damped second moment.
        errors: float32 ``[N, M]``, ``w`` less its values under ``scales``; updated.
        grid: what the values are of.
        geometry: which weights share a scale.
        scales: the scales so far.
        poll: called many times a second.

    Returns:
        The new scales.
    """
    n, m = w.shape
    mb, nb = scales.block.shape
    cols, rows = n // nb, m // mb
    effective = scales.effective
    blocks = []
    for g in range(nb):
        if poll is not None:
            poll()
        mine = slice(g * cols, (g + 1) * cols)
        old = effective[:, g : g + 1]  # [mb, 1]
        inverse = torch.where(old == 0, 0.0, 1.0 / old).repeat_interleave(rows, 0).t()
        values = (w[mine] - errors[mine]).mul_(inverse)  # q, [cols, M]
        pull = _sums(torch.mm(h[mine], errors).mul_(values), mb)
        curve = _sums(torch.mm(h[mine, mine], values).mul_(values), mb)
        wish = old + torch.where(curve > 0, pull / curve, 0.0)
        before = scales._replace(block=scales.block[:, g : g + 1])
        after = geometry.rule.snap(wish.clamp(old / 2, old * 2), scales.tensor)
        block = after.block
        if scales.between is None:
            change = after.effective - old
            gain = change * (2 * pull - change * curve)
            moved = values
        else:  # values do not follow their scale in proportion
            change = torch.ones_like(old)
            moved = _moved(w[mine] - errors[mine], grid, before, after)
            gained = 2 * torch.mm(h[mine], errors) - torch.mm(h[mine, mine], moved)
            gain = _sums(gained.mul_(moved), mb)
        better = (gain > 0) & (old > 0) & (block > 0)
        blocks.append(torch.where(better, block, before.block))
        change = torch.where(better, change, 0.0)
        errors[mine] -= moved.mul_(change.repeat_interleave(rows, 0).t())
    return scales._replace(block=torch.cat(blocks, dim=1))


def _moved(values: Tensor, grid: Grid, before: Scales, after: Scales) -> Tensor:
    """By how much values ``[cols, M]`` under ``before`` change under ``after``, codes kept."""
    codes = encode(values.t().contiguous(), grid, before)
    return (decode(codes, grid, after) - decode(codes, grid, before)).t().contiguous()


def _sums(x: Tensor, blocks: int) -> Tensor:
    """Sums of ``x [cols, M]`` over columns and over the rows of each of ``blocks``: ``[mb, 1]``."""
    return x.sum(dim=0).view(blocks, -1).sum(dim=1, keepdim=True)
