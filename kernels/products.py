"""Products with block-scaled weights, ``x @ w.T + bias``, in PyTorch: what kernels are held to.

``x`` carries one scale a row and group of columns, ``w`` one a row (or block of rows) and the same
groups. For one group at a time the scales leave the sum, so hardware can sum in 8 bits::

    y[t, n] = Σ_g x_scale[t, g] · w_scale[n, g] · Σ_{k ∈ g} x[t, k] · w[n, k]

Here the weight is decoded a few rows at a time and multiplied in floating point: what a product
needs besides its operands and result does not grow with the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activations import quantize_rows
from .blocks import dequantize

_TILE = 1 << 22
"""Weights decoded at once."""


def row_tiles(rows: int, columns: int, multiple: int) -> list[slice]:
    """Rows of a matrix a tile at a time, whole multiples of ``multiple`` in each."""
    step = max(_TILE // max(columns, 1) // multiple, 1) * multiple
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def weight_tiles(w: Tensor, w_scale: Tensor) -> list[tuple[slice, Tensor]]:
    """Rows of a weight ``[N, K]`` a tile at a time, and their scales ``[·, G]``."""
    n, k = w.shape
    blocks = w_scale.shape[0]
    if blocks <= 1:  # one scale for all rows
        return [(part, w_scale) for part in row_tiles(n, k, 1)]
    rows = n // blocks
    return [
        (part, w_scale[part.start // rows : part.stop // rows]) for part in row_tiles(n, k, rows)
    ]


def decoded_linear(
    x: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, weight_dtype: torch.dtype
) -> Tensor:
    """Multiply with the decoded weight, in the dtype of ``x``.

    Args:
        x: floating ``[T, K]``.
        w: codes ``[N, K]``.
        w_scale: float32 ``[Nb, G]``; ``Nb`` divides ``N``, ``G`` divides ``K``.
        bias: ``[N]`` or None.
        weight_dtype: the dtype the weight stands for; decoded values are rounded to it first.

    Returns:
        ``[T, N]`` in the dtype of ``x``.
    """
    n = w.shape[0]
    out = torch.empty(x.shape[0], n, dtype=x.dtype, device=x.device)
    if bias is not None:
        bias = bias.to(x.dtype)
    for part, scale in weight_tiles(w, w_scale):
        tile = dequantize(w[part], scale, weight_dtype).to(x.dtype)
        mine = None if bias is None else bias[part]
        out[:, part] = torch.nn.functional.linear(x, tile, mine)
    return out


def scaled_linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Multiply block-scaled matrices: ``x @ w.T + bias``.

    Args:
        x: codes ``[T, K]``, INT8 or FP8.
        x_scale: float32 ``[T, G]``, one scale a row and group of ``K / G`` columns.
        w: codes ``[N, K]`` of the same dtype.
        w_scale: float32 ``[Nb, G]``; ``Nb`` divides ``N``.
        bias: ``[N]`` or None.
        out_dtype: dtype of the result.

    Returns:
        ``[T, N]`` in ``out_dtype``, summed in float32. Other implementations sum the same products
        and agree to float32's rounding of the sum, and to the rounding of ``out_dtype``.
    """
    t, n = x.shape[0], w.shape[0]
    out = torch.empty(t, n, dtype=out_dtype, device=x.device)
    if not out.numel():
        return out
    values = dequantize(x, x_scale)
    for part, scale in weight_tiles(w, w_scale):
        y = values @ dequantize(w[part], scale).t()
        if bias is not None:
            y += bias[part]
        out[:, part] = y
    return out


def scaled_linear_quantized(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_group: int,
    gelu: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`scaled_linear`, then a GELU if asked, then quantized again to the dtype of ``x``.

    Args:
        out_group: columns of the result that share a scale; the last group may be shorter.
        gelu: None, or GELU's ``approximate``, ``"tanh"`` or ``"none"``.

    Returns:
        Codes ``[T, N]`` and float32 scales ``[T, ⌈N / out_group⌉]``.
    """
    y = scaled_linear(x, x_scale, w, w_scale, bias)
    if gelu is not None:
        y = torch.nn.functional.gelu(y, approximate=gelu)
    n = y.shape[1]
    padded = torch.nn.functional.pad(y, (0, -n % out_group))
    codes, scale = quantize_rows(padded, x.dtype, out_group)
    return codes[:, :n].contiguous(), scale


def coded_linear(
    x: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, weight_dtype: torch.dtype
) -> Tensor:
    """Quantize ``x`` to the grid of ``w``, by row and group, and multiply codes.

    Arguments and result as :func:`decoded_linear`.
    """
    codes, scale = quantize_rows(x, w.dtype, w.shape[1] // w_scale.shape[1])
    return scaled_linear(codes, scale, w, w_scale, bias, x.dtype)
