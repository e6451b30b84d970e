"""Grids: the values a code can take in the scaled domain.

A grid turns scaled weights (float32) into codes, one element a weight, and back. It knows nothing
of scales or of how codes are packed.
"""

from __future__ import annotations

from dataclasses import dataclass

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


_E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Midpoints; where the tie goes up to the even code, the boundary is the float just below it.
_E2M1_BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


@dataclass(frozen=True)
class E2M1Grid(Grid):
    """4-bit floats (OCP Microscaling v1.0): sign, two exponent bits, one mantissa bit.

    Codes are uint8 0..15 with the sign in bit 3.
    """

    def round(self, x: Tensor) -> Tensor:
        bounds = torch.tensor(_E2M1_BOUNDS, device=x.device)
        bounds[1::2] = torch.nextafter(bounds[1::2], torch.zeros(3, device=x.device))
        magnitude = torch.bucketize(x.abs(), bounds, out_int32=True).to(torch.uint8)
        return magnitude | (torch.signbit(x).to(torch.uint8) << 3)

    def decode(self, codes: Tensor) -> Tensor:
        values = torch.tensor(_E2M1_VALUES, device=codes.device)
        return torch.cat((values, -values))[codes.long()]


E4M3 = Float8Grid("e4m3", torch.float8_e4m3fn, 448.0, mantissa_bits=3, min_exponent=-6)
E5M2 = Float8Grid("e5m2", torch.float8_e5m2, 57344.0, mantissa_bits=2, min_exponent=-14)
INT8 = IntGrid("int8", torch.int8, 127.0)
E2M1 = E2M1Grid("e2m1", torch.uint8, 6.0, mantissa_bits=1, min_exponent=0)
