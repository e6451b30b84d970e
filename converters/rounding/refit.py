"""Scales fitted to codes: for given codes, the scale with the least output error.

With ``q`` the grid values of a block and ``E`` the errors of the whole matrix, the error is
quadratic in the block's scale, least at ``s + Σ(E·H)∘q / Σ(q·H_bb)∘q``, sums over the block.
The wish is rounded to a storable scale and taken only where it lowers the error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...layouts.geometries import Geometry, Scales
from .problem import Poll


def refit(
    w: Tensor, h: Tensor, errors: Tensor, geometry: Geometry, scales: Scales, poll: Poll | None
) -> Scales:
    """Refit each block's scale in turn.

    Args:
        w: float32 ``[N, M]``, transposed weights.
        h: float32 ``[N, N]``, the damped second moment.
        errors: float32 ``[N, M]``, ``w`` less its values under ``scales``; updated.
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
        block = geometry.rule.snap(wish.clamp(old / 2, old * 2), scales.tensor).block
        change = Scales(block, scales.tensor).effective - old
        better = (change * (change * curve - 2 * pull) < 0) & (old > 0) & (block > 0)
        blocks.append(torch.where(better, block, scales.block[:, g : g + 1]))
        change = torch.where(better, change, 0.0)
        errors[mine] -= values.mul_(change.repeat_interleave(rows, 0).t())
    return Scales(torch.cat(blocks, dim=1), scales.tensor)


def _sums(x: Tensor, blocks: int) -> Tensor:
    """Sums of ``x [cols, M]`` over columns and over the rows of each of ``blocks``: ``[mb, 1]``."""
    return x.sum(dim=0).view(blocks, -1).sum(dim=1, keepdim=True)
