"""Quantizing what runs through a layer: by row and group of columns, with or without a GELU first.

For each row ``t`` and group ``g`` of ``K / G`` columns, in float32::

    scale[t, g] = max(absmax(x[t, g]) / largest code, 1e-30)
    INT8:  codes = clamp(round(x / scale), ±127)        FP8:  codes = cast(clamp(x · (1 / scale)))

rounding to nearest, ties to even. An all-zero group gets codes 0; a NaN makes its group's scale
NaN, and so what is made of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import block_view, blockwise_absmax, dequantize, expand_scale

FLOOR = 1e-30
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def scale_of(absmax: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales that map ``absmax`` (float32) to the largest code of ``dtype``.

    The divisor is a tensor: devices multiply by the reciprocal of a number, which differs in the
    last bit.
    """
    return (absmax / torch.full_like(absmax, LARGEST[dtype])).clamp_(min=FLOOR)


def encode(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes of float32 ``values [M, N]``, overwritten, under ``scale [Mb, Nb]``."""
    m, n = values.shape
    blocks = block_view(values, m // scale.shape[0], n // scale.shape[1])
    if dtype == torch.int8:
        return blocks.div_(expand_scale(scale)).round_().clamp_(-127, 127).to(dtype).view(m, n)
    return blocks.mul_(expand_scale(1.0 / scale)).clamp_(-448, 448).to(dtype).view(m, n)


def quantize_rows(x: Tensor, dtype: torch.dtype, group: int) -> tuple[Tensor, Tensor]:
    """Quantize ``x`` by row and group of columns.

    Args:
        x: floating ``[T, K]``, any strides.
        dtype: of the codes, int8 or float8_e4m3fn.
        group: columns that share a scale; divides ``K``.

    Returns:
        Codes ``[T, K]`` and float32 scales ``[T, K / group]``, both contiguous.
    """
    return _quantize(_float32(x), dtype, 1, group)


def gelu_quantize(
    x: Tensor, x_scale: Tensor | None, dtype: torch.dtype, group: int, approximate: str
) -> tuple[Tensor, Tensor]:
    """GELU, then :func:`quantize_rows`, in float32 in between.

    Args:
        x: floating ``[T, K]``, or codes.
        x_scale: float32 ``[T, K / group]`` where ``x`` are codes, else None.
        dtype: of the resulting codes.
        group: columns that share a scale.
        approximate: ``"tanh"`` or ``"none"``, as torch calls them.
    """
    values = x.to(torch.float32) if x_scale is None else dequantize(x, x_scale)
    values = torch.nn.functional.gelu(values, approximate=approximate)
    return _quantize(values.contiguous(), dtype, 1, group)


def quantize_blocks(w: Tensor, dtype: torch.dtype, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Quantize a weight by blocks: rows (``rows=1, cols=N``), row blocks, 2-D blocks.

    Args:
        w: floating ``[M, N]``.
        dtype: of the codes, int8 or float8_e4m3fn.
        rows: rows of a block; divides ``M``.
        cols: columns of a block; divides ``N``.

    Returns:
        Codes ``[M, N]`` and float32 scales ``[M / rows, N / cols]``.
    """
    return _quantize(_float32(w), dtype, rows, cols)


def _float32(x: Tensor) -> Tensor:
    return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _quantize(values: Tensor, dtype: torch.dtype, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    if not values.numel():
        shape = (values.shape[0] // rows, values.shape[1] // cols)
        scale = torch.empty(shape, dtype=torch.float32, device=values.device)
        return torch.empty_like(values, dtype=dtype), scale
    scale = scale_of(blockwise_absmax(values, rows, cols), dtype)
    return encode(values, scale, dtype), scale
