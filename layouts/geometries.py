"""Geometries: which weights share a scale, and which values a scale can take.

Scales are held as a grid ``[Mb, Nb]`` over the (padded) matrix. A :class:`ScaleRule` says how a
block's scale follows from its largest magnitude and what it is rounded to; a :class:`Geometry` says
how large the blocks are. Rounding methods need nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..kernels import blockwise_absmax
from .grids import INT8, Grid

E8M0_BIAS = 127
_E4M3_MAX = 448.0
_E4M3_LAST = 0x7E  # the code of the largest


class Scales(NamedTuple):
    """Scales of a matrix, and how they combine.

    A code stands for its grid value times ``block``, rounded to ``between`` where there is such a
    grid, times ``tensor``.

    Attributes:
        block: float32 ``[Mb, Nb]``, one a block, already rounded to what the format stores.
        tensor: float32, a factor common to all blocks, ``[]``, or to a row of them, ``[Mb, 1]``;
            or None.
        between: the grid that values are rounded to between the two levels, or None.
        peak: float32 ``[]``, the largest magnitude that codes decode to, where a format keeps it.
    """

    block: Tensor
    tensor: Tensor | None = None
    between: Grid | None = None
    peak: Tensor | None = None

    @property
    def effective(self) -> Tensor:
        """What a code is multiplied with: float32 ``[Mb, Nb]``."""
        return self.block if self.tensor is None else self.tensor * self.block

    def rows(self, part: slice) -> Scales:
        """The scales of some rows of blocks."""
        tensor = self.tensor
        if tensor is not None and tensor.ndim == 2:
            tensor = tensor[part]
        return Scales(self.block[part], tensor, self.between)

    def to(self, device: torch.device | str) -> Scales:
        """The same on another device."""
        tensor, peak = (None if t is None else t.to(device) for t in (self.tensor, self.peak))
        return Scales(self.block.to(device), tensor, self.between, peak)

    @staticmethod
    def join(parts: Sequence[Scales]) -> Scales:
        """Scales of rows of blocks that follow each other, as one."""
        tensor = parts[0].tensor
        if tensor is not None and tensor.ndim == 2:
            tensor = torch.cat([part.tensor for part in parts if part.tensor is not None])
        peaks = [part.peak for part in parts if part.peak is not None]
        peak = torch.stack(peaks).amax() if peaks else None
        return Scales(torch.cat([part.block for part in parts]), tensor, parts[0].between, peak)


@dataclass(frozen=True)
class ScaleRule:
    """Free float32 scales, never below ``floor`` so that all-zero blocks divide safely."""

    floor: float = 1e-30
    needs_peak: ClassVar[bool] = False
    """Whether scales follow from the largest magnitude of the whole matrix too."""

    def from_absmax(self, absmax: Tensor, grid: Grid, tensor_absmax: Tensor | None) -> Scales:
        """Scales that map each block's largest magnitude to the grid's maximum."""
        return Scales((absmax / grid.max).clamp_(min=self.floor))

    def snap(self, effective: Tensor, tensor: Tensor | None) -> Scales:
        """Round wished-for effective scales ``[Mb, Nb]`` to storable ones."""
        return Scales(effective.clamp(min=self.floor))


    def candidates(self, start: Scales, multiples: Sequence[float]) -> list[Tensor]:
        """Different storable block scales ``[Mb, Nb]`` to search among, ``start``'s first: about
        these multiples of it."""
        tried = [start.block]
        for multiple in multiples:
            block = self.snap(start.effective * multiple, start.tensor).block
            if type(self) is ScaleRule or not torch.equal(block, tried[-1]):
                tried.append(block)
        return tried


@dataclass(frozen=True)
class PowerOfTwoRule(ScaleRule):
    """E8M0 scales (OCP Microscaling v1.0): powers of two, rounded up; 0 marks an all-zero block."""

    def from_absmax(self, absmax: Tensor, grid: Grid, tensor_absmax: Tensor | None) -> Scales:
        needed = (absmax / grid.max).clamp_(min=2.0**-E8M0_BIAS)
        power = self._power(torch.ceil(torch.log2(needed)), absmax == 0)
        return Scales(torch.where(torch.isfinite(absmax), power.block, absmax))

    def snap(self, effective: Tensor, tensor: Tensor | None) -> Scales:
        safe = effective.clamp(min=2.0**-126)
        return self._power(torch.round(torch.log2(safe)), effective == 0)

    @staticmethod
    def _power(exponent: Tensor, zero: Tensor) -> Scales:
        exponent = exponent.clamp_(-E8M0_BIAS, E8M0_BIAS).to(torch.int32)
        scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
        return Scales(scale.masked_fill_(zero, 0.0))


@dataclass(frozen=True)
class TwoLevelRule(ScaleRule):
    """E4M3 block scales under one float32 scale a tensor (NVFP4)."""

    needs_peak: ClassVar[bool] = True

    def from_absmax(self, absmax: Tensor, grid: Grid, tensor_absmax: Tensor | None) -> Scales:
        peak = absmax.amax() if tensor_absmax is None else tensor_absmax
        tensor = (peak / (_E4M3_MAX * grid.max)).clamp(min=self.floor)
        return Scales(_e4m3(absmax / grid.max / tensor), tensor)

    def snap(self, effective: Tensor, tensor: Tensor | None) -> Scales:
        assert tensor is not None
        return Scales(_e4m3(effective / tensor), tensor)


@dataclass(frozen=True)
class RowLevelsRule(ScaleRule):
    """E4M3 block scales under one float32 scale a row, values rounded to INT8 between the two.

    The rows' scales map a row's largest magnitude to INT8's maximum, so the product runs on INT8.
    """

    between: Grid = INT8

    def from_absmax(self, absmax: Tensor, grid: Grid, tensor_absmax: Tensor | None) -> Scales:
        row = (absmax.amax(dim=1, keepdim=True) / self.between.max).clamp_(min=self.floor)
        return Scales(_e4m3(absmax / grid.max / row), row, self.between)

    def snap(self, effective: Tensor, tensor: Tensor | None) -> Scales:
        assert tensor is not None
        return Scales(_e4m3(effective / tensor), tensor, self.between)

    def candidates(self, start: Scales, multiples: Sequence[float]) -> list[Tensor]:
        """Each block's neighbours among E4M3's values: all there are, in a third of the tries."""
        codes = start.block.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
        tried = [start.block]
        for step in range(_steps(min(multiples)), _steps(max(multiples)) + 1):
            if step:
                moved = (codes + step).clamp_(1, _E4M3_LAST).to(torch.uint8)
                block = moved.view(torch.float8_e4m3fn).to(torch.float32)
                tried.append(torch.where(codes == 0, 0.0, block))
        return tried


def _steps(multiple: float) -> int:
    """About how many of E4M3's values away a multiple of a scale is: eight to the octave."""
    return round(8 * math.log2(multiple))


def _e4m3(x: Tensor) -> Tensor:
    return x.clamp_(max=_E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32)


FLOAT_SCALES = ScaleRule()
ABSMAX_SCALES = ScaleRule(floor=0.0)  # all-zero blocks have scale 0, which encoding heeds
POWERS_OF_TWO = PowerOfTwoRule()
TWO_LEVELS = TwoLevelRule()
ROW_LEVELS = RowLevelsRule()


@dataclass(frozen=True)
class Geometry:
    """Blocks of ``rows × cols`` weights share a scale; None stands for the whole dimension.

    Flat blocks are ``cols`` consecutive weights of the row-major matrix, whatever its rows' length;
    the last may be shorter. Where they straddle rows, scales are still held as a grid over the
    matrix: of one row and the most columns that divide both blocks and rows, the *cells*. A run of
    consecutive cells then has one scale (:meth:`over_runs`).
    """

    rows: int | None
    cols: int | None
    rule: ScaleRule = FLOAT_SCALES
    flat: bool = False

    @classmethod
    def in_order(cls, size: int, rule: ScaleRule = FLOAT_SCALES) -> Geometry:
        """Flat blocks of ``size`` weights."""
        return cls(1, size, rule, True)

    @property
    def needs_tensor_absmax(self) -> bool:
        """Whether rows can be encoded only once the whole matrix has been seen."""
        return self.rows is None or self.rule.needs_peak

    @property
    def row_step(self) -> int:
        """Rows that must be encoded together, once ``tensor_absmax`` is known."""
        return self.cols or 1 if self.flat else self.rows or 1

    def run(self, columns: int) -> int:
        """How many consecutive cells of a matrix with so many columns share a scale."""
        return (self.cols or 1) // math.gcd(self.cols or 1, columns) if self.flat else 1

    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of one block, or cell, of a matrix of ``shape``."""
        if self.flat:
            return 1, math.gcd(self.cols or 1, shape[1])
        return self.rows or max(shape[0], 1), self.cols or max(shape[1], 1)

    def over_runs(self, cells: Tensor, columns: int, reduce: Literal["amax", "sum"]) -> Tensor:
        """The largest or the sum over each run of cells, at each of its cells.

        Args:
            cells: ``[..., Mb, Nb]``, at least 0 where ``reduce`` is ``"amax"``: whole runs, but for
                the last of a matrix.
            columns: of the matrix.
            reduce: how the cells of a run are put together.
        """
        run = self.run(columns)
        if run == 1 or cells.numel() == 0:
            return cells
        flat = cells.flatten(-2)
        count = flat.shape[-1]
        runs = torch.nn.functional.pad(flat, (0, -count % run)).unflatten(-1, (-1, run))
        found = runs.amax(-1) if reduce == "amax" else runs.sum(-1)
        return found.repeat_interleave(run, -1)[..., :count].view(cells.shape)

    def grid_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape ``[Mb, Nb]`` of the scales of a matrix of ``shape``."""
        rows, cols = self.block(shape)
        return -(-shape[0] // rows), -(-shape[1] // cols)

    def scales(self, w: Tensor, grid: Grid, tensor_absmax: Tensor | None = None) -> Scales:
        """Absmax scales of ``w`` (float32 ``[M, N]``, or some of its rows with ``tensor_absmax``).
        """
        if self.rows is None and tensor_absmax is not None:
            absmax = tensor_absmax.reshape(1, 1)
        else:
            absmax = blockwise_absmax(w, *self.block((w.shape[0], w.shape[1])))
            absmax = self.over_runs(absmax, w.shape[1], "amax")
        return self.rule.from_absmax(absmax, grid, tensor_absmax)


PER_TENSOR = Geometry(None, None)
PER_ROW = Geometry(1, None)
