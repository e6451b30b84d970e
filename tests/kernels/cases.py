"""What the kernels' tests share: awkward shapes, operands, and how far results may differ."""

from __future__ import annotations

import torch
from torch import Tensor

CODES = [torch.int8, torch.float8_e4m3fn]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(seed * 7919**at for at, seed in enumerate(seeds)))


def floats(t: int, k: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(t, k, generator=generator(t, k)) * scale).to(dtype)


def codes(t: int, k: int, dtype: torch.dtype) -> Tensor:
    """Codes over the grid's whole range, its ends among them."""
    largest = 127 if dtype == torch.int8 else 448
    values = torch.randn(t, k, generator=generator(t, k, 3)) * largest / 3
    values.view(-1)[0], values.view(-1)[-1] = largest, -largest
    return values.clamp(-largest, largest).to(dtype)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(*shape)) + 0.1


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit; zeros of either sign, and NaN, are told apart."""
    a, b = a.cpu(), b.cpu()
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def relative_error(exact: Tensor, found: Tensor) -> float:
    """‖exact − found‖ / ‖exact‖, in float64."""
    exact, found = exact.double().cpu(), found.double().cpu()
    return float((exact - found).norm() / exact.norm().clamp(min=1e-300))


ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""How far a sum in float32 may be off once rounded to a dtype, relative to the whole. Twice the
rounding to nearest: Triton's interpreter cuts bfloat16 off."""
