"""Rounding one column at a time: a grid under the scales of a matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...layouts.geometries import Scales
from ...layouts.grids import CodebookGrid, Grid, IntGrid, round_floating


class Quantizer:
    """Rounds columns of a matrix ``[M, N]`` to values of ``grid`` times ``scales``.

    Args:
        grid: the grid.
        scales: the scales of the whole matrix.
        shape: ``(M, N)``.
        order: int64 ``[N]``, the column that each position stands for; None for the natural order.
        copies: how many matrices lie side by side, ``[copies · M]`` rows.
    """

    def __init__(
        self,
        grid: Grid,
        scales: Scales,
        shape: tuple[int, int],
        order: Tensor | None = None,
        copies: int = 1,
    ) -> None:
        m, n = shape

        def spread(scale: Tensor) -> Tensor:
            factor = scale.t().contiguous()  # [Nb, Mb]
            if 1 < factor.shape[1] < m:
                factor = factor.repeat_interleave(m // factor.shape[1], dim=1)
            return factor.repeat(1, copies) if copies > 1 and factor.shape[1] > 1 else factor

        factor = spread(scales.effective if scales.between is None else scales.block)
        inverse = torch.where(factor == 0, 0.0, 1.0 / factor)
        blocks = torch.arange(n, device=factor.device) // (n // factor.shape[0])
        self._of = (blocks if order is None else blocks[order]).tolist()
        self._scale, self._inverse = list(factor), list(inverse)
        self._round = rounder(grid)
        self._grid, self._between = grid, scales.between
        if scales.between is not None:
            assert scales.tensor is not None
            self._outer = spread(scales.tensor.reshape(-1, 1))[0]
            self._to_outer = torch.where(self._outer == 0, 0.0, 1.0 / self._outer)

    def column(self, x: Tensor, position: int) -> Tensor:
        """Values nearest to ``x [M]``."""
        block = self._of[position]
        if self._between is not None:
            return self._column_between(x, self._between, self._scale[block], self._inverse[block])
        return self._round(x * self._inverse[block]).mul_(self._scale[block])

    def _column_between(self, x: Tensor, between: Grid, scale: Tensor, inverse: Tensor) -> Tensor:
        """Of the values beside the exact one, the nearer once both are rounded between levels."""
        target = x * self._to_outer
        low, high = self._grid.neighbours(target * inverse)
        low = between.nearest_values(low.mul_(scale))
        high = between.nearest_values(high.mul_(scale))
        up = (high - target).abs_() < (target - low).abs_()
        return torch.where(up, high, low).mul_(self._outer)


def rounder(grid: Grid) -> Callable[[Tensor], Tensor]:
    """A function that rounds scaled float32 values, maybe in place, to values of ``grid``.

    For floating and uniform grids it stays in float32 arithmetic, several times faster on a CPU
    than making codes; the values are the same. Codebooks are looked up once instead of twice.
    """
    largest = grid.max
    if isinstance(grid, IntGrid):
        return lambda x: x.round_().clamp_(-largest, largest)
    if isinstance(grid, CodebookGrid):
        return grid.nearest_values
    if not grid.mantissa_bits:
        return lambda x: grid.decode(grid.round(x))
    return lambda x: round_floating(x.clamp_(-largest, largest), grid)
