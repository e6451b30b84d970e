"""A grid's values in order, and positions between them.

Codes are learned as positions on this ladder: 3.4 is 40 % of the way from the fourth value to the
fifth. Rounding a position rounds the value to nearest, and a step of 0.01 means the same for every
grid, however unevenly its values lie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....layouts.grids import CodebookGrid, Grid

_OCTAVES = 48  # below the largest value: more than any 8-bit float has


class Ladder:
    """The values of ``grid``, ascending, float32 ``[L]``, with what lies between them."""

    def __init__(self, grid: Grid, device: torch.device) -> None:
        self.values = _values(grid).to(device)
        gaps = self.values.diff()
        self._gaps = torch.cat((gaps, gaps[-1:]))
        self._first = float(self.values[0])
        self._gap = float(gaps[0])
        evenly = torch.arange(len(self.values), device=device) * self._gap + self._first
        self.uniform = torch.equal(evenly, self.values)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def top(self) -> int:
        """The last position."""
        return len(self.values) - 1

    def positions(self, x: Tensor) -> Tensor:
        """Positions of scaled values ``x``, float32 of the same shape, within the ladder."""
        below = torch.searchsorted(self.values, x, right=True).sub_(1).clamp_(0, self.top - 1)
        between = (x - self.values[below]) / self._gaps[below]
        return (below + between).clamp_(0, self.top)

    def gaps(self, positions: Tensor) -> Tensor:
        """Distance between the two values each position lies between."""
        return self._gaps[positions.floor().long().clamp_(0, self.top - 1)]

    def at(self, rungs: Tensor) -> Tensor:
        """Values of whole positions (float32), float32 of the same shape."""
        if self.uniform:
            return rungs * self._gap + self._first
        return self.values.take(rungs.long())


def _values(grid: Grid) -> Tensor:
    """Every value of ``grid``, ascending, once."""
    if isinstance(grid, CodebookGrid):
        return torch.tensor(sorted(set(grid.values)))
    evenly = torch.linspace(-grid.max, grid.max, 8193)
    octaves = grid.max * torch.logspace(-_OCTAVES, 0, 64 * _OCTAVES + 1, base=2.0)
    probes = torch.cat((evenly, octaves, -octaves))
    return torch.unique(grid.decode(grid.round(probes)))
