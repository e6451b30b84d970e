"""Grids: the values a code can take in the scaled domain.

A grid turns scaled weights (float32) into codes, one element a weight, and back. It knows nothing
of scales or of how codes are packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A set of representable values.

    Attributes:
        name: for messages and reports.
        dtype: dtype of the codes.
        max: the largest magnitude.
        mantissa_bits: explicit mantissa bits of a floating grid (0: uniform spacing of one).
        min_exponent: exponent of the smallest normal value of a floating grid.
        by_reciprocal: whether encoders multiply by 1/scale (as comfy-kitchen does for FP8) or
            divide by the scale (INT8, NVFP4): the two differ in the last bit.
    """

    name: str
    dtype: torch.dtype
    max: float
    mantissa_bits: int = 0
    min_exponent: int = 0
    by_reciprocal: bool = False

    def round(self, x: Tensor) -> Tensor:
        """Round ``x`` (float32, scaled; may be overwritten) to the nearest code, ties to even."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 value of each code."""
        return codes.to(torch.float32)

    def nearest_values(self, x: Tensor) -> Tensor:
        """The values nearest to ``x`` (float32, scaled; may be overwritten): decode ∘ round."""
        return self.decode(self.round(x))

    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values on either side of ``x`` (float32, scaled), low and high; at the ends one value
        twice."""
        return _neighbours(_ordered(self, str(x.device)), x)

    def round_stochastic(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Round each element up or down at random, so that its expectation is kept."""
        step: Tensor | float = 1.0
        if self.mantissa_bits:
            exponent = torch.frexp(x).exponent.sub_(1).clamp_(min=self.min_exponent)
            step = torch.ldexp(torch.ones_like(x), exponent - self.mantissa_bits)
        noise = torch.rand(x.shape, generator=generator, device=x.device)
        return self.round((x / step).add_(noise).floor_().mul_(step))


@dataclass(frozen=True)
class Float8Grid(Grid):
    """An 8-bit float that torch has as a dtype. Values clamp to ``±max`` before the cast."""

    by_reciprocal: bool = True

    def round(self, x: Tensor) -> Tensor:
        return x.clamp_(-self.max, self.max).to(self.dtype)


@dataclass(frozen=True)
class IntGrid(Grid):
    """Signed integers ``−max … max``, symmetric (−128 is never written)."""

    def round(self, x: Tensor) -> Tensor:
        return x.round_().clamp_(-self.max, self.max).to(self.dtype)

    def nearest_values(self, x: Tensor) -> Tensor:
        return x.round_().clamp_(-self.max, self.max)

    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = x.floor()
        high = (low + 1).clamp_(-self.max, self.max)
        return low.clamp_(-self.max, self.max), high


@dataclass(frozen=True)
class E2M1Grid(Grid):
    """4-bit floats (OCP Microscaling v1.0): sign, two exponent bits, one mantissa bit.

    Codes are uint8 0..15 with the sign in bit 3. An E2M1 value over 2⁶ is an E4M3 value whose
    lowest two bits are zero, subnormals included: the other bits are the code.
    """

    def round(self, x: Tensor) -> Tensor:
        values = round_floating(x.clamp(-self.max, self.max), self).copysign_(x)
        bits = values.mul_(2.0**-6).to(torch.float8_e4m3fn).view(torch.uint8)
        return ((bits >> 2) & 7).bitwise_or_((bits >> 4) & 8)

    def decode(self, codes: Tensor) -> Tensor:
        bits = ((codes & 7) << 2).bitwise_or_((codes & 8) << 4)
        return bits.view(torch.float8_e4m3fn).to(torch.float32).mul_(2.0**6)


def round_floating(x: Tensor, grid: Grid) -> Tensor:
    """Round float32 ``x``, within ``±grid.max``, in place to values of a floating ``grid``, ties to
    even.

    Adding and subtracting a multiple of a value's power of two rounds to the grid's step there.
    """
    shift = 1.5 * 2.0 ** (23 - grid.mantissa_bits)
    magic = x.view(torch.int32).bitwise_and(0x7F800000).view(torch.float32)
    magic.mul_(shift).clamp_(min=shift * 2.0**grid.min_exponent)
    return x.add_(magic).sub_(magic)


@dataclass(frozen=True)
class CodebookGrid(Grid):
    """Any values at all, 2 to 256 of them, by code: a quantizer's table, or one fitted to a layer.

    Codes are uint8 positions in ``values``, which may be in any order and may hold a value twice.
    A tie goes to the lower value. Of two codes for one value, the first takes what lies below it,
    the second what lies above (bitsandbytes' two zeros).
    """

    values: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, name: str, values: Sequence[float] | Tensor, *, by_reciprocal: bool = False
    ) -> CodebookGrid:
        """A grid of these values, by code; each is rounded to float32.

        Raises ValueError unless there are 2 to 256 finite ones, not all zero.
        """
        table = torch.as_tensor(values, dtype=torch.float32).flatten()
        largest = float(table.abs().max()) if len(table) else 0.0
        if not 2 <= len(table) <= 256 or not 0.0 < largest < float("inf"):
            raise ValueError(f"{name}: a codebook has 2 to 256 finite values, not all zero")
        return cls(
            name,
            torch.uint8,
            largest,
            by_reciprocal=by_reciprocal,
            values=tuple(table.tolist()),
        )

    def tables(self, device: torch.device) -> Codebook:
        """The grid's tables on ``device``."""
        return _codebook(self.values, str(device))

    def round(self, x: Tensor) -> Tensor:
        tables = self.tables(x.device)
        return tables.codes[torch.bucketize(x, tables.bounds)]

    def decode(self, codes: Tensor) -> Tensor:
        return self.tables(codes.device).values[codes.long()]

    def nearest_values(self, x: Tensor) -> Tensor:
        """The values nearest to ``x``, float32 of the same shape: decode ∘ round, faster."""
        tables = self.tables(x.device)
        return tables.ordered[torch.bucketize(x, tables.bounds)]

    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _neighbours(self.tables(x.device).ordered, x)

    def round_stochastic(self, x: Tensor, generator: torch.Generator) -> Tensor:
        tables = self.tables(x.device)
        noise = torch.rand(x.shape, generator=generator, device=x.device)
        last = len(tables.ordered) - 1
        below = torch.bucketize(x, tables.ordered, right=True).sub_(1).clamp_(0, last)
        above = (below + 1).clamp_(max=last)
        low = tables.ordered[below]
        gap = tables.ordered[above] - low
        up = (x - low) > noise * gap
        return tables.codes[torch.where(up, above, below)]


class Codebook(NamedTuple):
    """Tables of a :class:`CodebookGrid` with ``L`` values, on one device.

    Attributes:
        values: float32 ``[L]`` by code.
        ordered: float32 ``[L]``, ascending.
        codes: uint8 ``[L]``, the code of each of ``ordered``.
        bounds: float32 ``[L − 1]``, midpoints of ``ordered``; a value on one goes down.
    """

    values: Tensor
    ordered: Tensor
    codes: Tensor
    bounds: Tensor


@lru_cache(maxsize=64)
def _codebook(values: tuple[float, ...], device: str) -> Codebook:
    with torch.inference_mode(False):  # the tables outlive the mode they are first asked for in
        table = torch.tensor(values, device=device)
        ordered, order = torch.sort(table, stable=True)
        midpoints = (ordered[:-1] + ordered[1:]) / 2
        return Codebook(table, ordered, order.to(torch.uint8), midpoints)


@lru_cache(maxsize=16)
def _ordered(grid: Grid, device: str) -> Tensor:
    """Every value of a grid of at most 256 codes, ascending, float32."""
    with torch.inference_mode(False):
        codes = torch.arange(256, dtype=torch.uint8, device=device)
        if grid.dtype == torch.uint8:
            codes = codes[:16]  # four bits
        values = grid.decode(codes.view(grid.dtype))
        return torch.unique(values[values.abs() <= grid.max])


def _neighbours(ordered: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    above = torch.bucketize(x, ordered, right=True)
    last = len(ordered) - 1
    return ordered[(above - 1).clamp_(0, last)], ordered[above.clamp_(max=last)]


E4M3 = Float8Grid("e4m3", torch.float8_e4m3fn, 448.0, mantissa_bits=3, min_exponent=-6)
E5M2 = Float8Grid("e5m2", torch.float8_e5m2, 57344.0, mantissa_bits=2, min_exponent=-14)
INT8 = IntGrid("int8", torch.int8, 127.0)
INT4 = IntGrid("int4", torch.int8, 7.0)
INT4_WIDE = IntGrid("int4, −8 too", torch.int8, 8.0)
INT6 = IntGrid("int6", torch.int8, 31.0)
E2M1 = E2M1Grid("e2m1", torch.uint8, 6.0, mantissa_bits=1, min_exponent=0)
