"""A layer's weights, what they are rounded to, and what its error is measured by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels import block_view, expand_scale
from ....layouts.codec import combine, encode
from ....layouts.geometries import Geometry, Scales
from ....layouts.grids import Grid
from ..problem import Poll
from .ladder import Ladder
from .objectives import Objective


@dataclass(frozen=True)
class Layer:
    """One layer to learn.

    Attributes:
        w: float32 ``[M, N]``, transformed and padded.
        grid: the grid to round to.
        geometry: which weights share a scale.
        ladder: the grid's values.
        objective: what is minimised.
        poll: called every iteration.
    """

    w: Tensor
    grid: Grid
    geometry: Geometry
    ladder: Ladder
    objective: Objective
    poll: Poll

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, N)``."""
        return self.w.shape[0], self.w.shape[1]

    def spread(self, scale: Tensor) -> Tensor:
        """A scale grid ``[Mb, Nb]`` as one value a weight, ``[M, N]``."""
        (m, n), (mb, nb) = self.shape, scale.shape
        return expand_scale(scale).expand(mb, m // mb, nb, n // nb).reshape(m, n)

    def gather(self, x: Tensor) -> Tensor:
        """Sums of ``x [M, N]`` over the blocks that share a scale, ``[Mb, Nb]``."""
        rows, cols = self.geometry.block(self.shape)
        sums = block_view(x, rows, cols).sum(dim=3).sum(dim=1)
        return self.geometry.over_runs(sums, self.shape[1], "sum")

    @property
    def rows_share_scales(self) -> bool:
        """Whether a scale may serve more than one row."""
        rows = self.geometry.block(self.shape)[0]
        return rows > 1 or self.geometry.run(self.shape[1]) > 1

    def rungs(self, codes: Tensor) -> Tensor:
        """Ladder positions of ``codes``, whole numbers as float32."""
        return self.ladder.positions(self.grid.decode(codes)).round_()

    def codes(self, rungs: Tensor) -> Tensor:
        """Codes at whole ladder positions."""
        return self.grid.round(self.ladder.at(rungs))

    def nearest(self, scales: Scales) -> State:
        """Nearest codes under ``scales``."""
        rungs = self.rungs(encode(self.w, self.grid, scales))
        return State(rungs, scales, self.parts(rungs, scales))

    def parts(self, rungs: Tensor, scales: Scales) -> Tensor:
        """The objective's parts at these codes and scales."""
        return self.objective(self.error(rungs, scales)).parts

    def error(self, rungs: Tensor, scales: Scales) -> Tensor:
        """``Ŵ − W`` at these codes and scales, float32 ``[M, N]``."""
        scale = self.spread(scales.effective)
        return self.decoded(self.ladder.at(rungs), scale, scales).sub_(self.w)

    def decoded(
        self, values: Tensor, scale: Tensor, scales: Scales, out: Tensor | None = None
    ) -> Tensor:
        """What grid values ``[M, N]`` stand for, float32 ``[M, N]``, perhaps ``out``.

        ``scale`` is ``scales.effective`` spread over the weights.
        """
        if scales.between is None:
            return torch.mul(values, scale, out=out)
        return combine(values, scales)

    def moved(self, rungs: Tensor, toward: Tensor, scale: Tensor, scales: Scales) -> Tensor:
        """By how much the decoded values change from ``rungs`` to ``toward``, ``[M, N]``."""
        new, old = self.ladder.at(toward), self.ladder.at(rungs)
        if scales.between is None:
            return new.sub_(old).mul_(scale)
        return combine(new, scales).sub_(combine(old, scales))

    def unit(self, scales: Scales) -> Tensor:
        """What a step of the ladder moves each weight by, ``[M, N]``; 0 in all-zero blocks."""
        scale = self.spread(scales.effective)
        living = self.spread(self.gather(self.w.abs())) > 0
        gaps = self.ladder.gaps(self.positions(scale))
        return torch.where(living, gaps.mul_(scale), 0.0)

    def bounds(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest position each weight may take; broadcast to ``[M, N]``."""
        if self.objective.local:
            exact = self.positions(scale)
            return exact.floor(), exact.ceil()
        return scale.new_zeros(()), scale.new_full((), self.ladder.top)

    def positions(self, scale: Tensor) -> Tensor:
        """Where the unrounded weights lie on the ladder under ``scale [M, N]``."""
        return self.ladder.positions(torch.where(scale > 0, self.w / scale, 0.0))


@dataclass(frozen=True)
class State:
    """Codes and scales, and what they cost.

    Attributes:
        rungs: whole ladder positions, float32 ``[M, N]``.
        scales: the scales.
        parts: the objective's parts.
    """

    rungs: Tensor
    scales: Scales
    parts: Tensor

    @property
    def cost(self) -> float:
        """The objective."""
        return float(self.parts.sum(dtype=torch.float64))

    def better_of(self, other: State) -> State:
        """The cheaper of the two."""
        return other if other.cost < self.cost else self
