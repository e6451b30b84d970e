"""Weights of four bits under a table of 16 values and flat scales: decoding, and products.

The weight ``[M, N]`` lies row-major, two codes a byte, the even element in the high nibble, as in
bitsandbytes; every ``group_size`` consecutive weights share a scale, across rows where rows are not
whole groups, and the last group may be shorter. ``W = table[code] · absmax[group]``, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TILE = 1 << 20
"""Weights decoded at once: what tables and indices take is a few times their memory."""


def dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    group_size: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Decode a weight, tile by tile.

    Args:
        packed: uint8, ⌈M·N/2⌉ bytes, of any shape.
        absmax: float32 ``[⌈M·N/group_size⌉]``.
        codebook: float32 ``[16]``, the value of each code.
        group_size: consecutive weights that share a scale; even.
        shape: ``(M, N)``.
        dtype: of the result; products are made in float32 and rounded once.

    Returns:
        ``[M, N]``.
    """
    count = shape[0] * shape[1]
    out = torch.empty(count, dtype=dtype, device=packed.device)
    bytes_, scale = packed.reshape(-1), absmax.reshape(-1)
    pairs = torch.cartesian_prod(codebook, codebook)  # [256, 2]: high nibble, low nibble
    step = max(_TILE // group_size, 1) * group_size
    for start in range(0, count, step):
        stop = min(start + step, count)
        values = pairs.index_select(0, bytes_[start // 2 : -(-stop // 2)].int()).view(-1)
        groups = scale[start // group_size : -(-stop // group_size)]
        full = (stop - start) // group_size
        head = values[: full * group_size].view(full, group_size).mul_(groups[:full, None])
        out[start : start + head.numel()] = head.view(-1)
        if full < len(groups):  # the last group, shorter than the others
            tail = values[full * group_size : stop - start]
            out[stop - tail.numel() : stop] = tail.mul_(groups[full])
    return out.view(shape)


def linear_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    group_size: int,
    shape: tuple[int, int],
    bias: Tensor | None = None,
) -> Tensor:
    """``x @ W.T + bias``, ``W`` decoded to the dtype of ``x`` a tile of rows at a time.

    Args:
        x: floating ``[..., N]``.
        packed, absmax, codebook, group_size, shape: the weight, see :func:`dequantize_4bit`.
        bias: ``[M]`` or None.

    Returns:
        ``[..., M]`` in the dtype of ``x``.
    """
    m, n = shape
    step = max(_TILE // max(n, 1) // (2 * group_size), 1) * 2 * group_size  # whole groups and bytes
    if step >= m:
        weight = dequantize_4bit(packed, absmax, codebook, group_size, shape, x.dtype)
        return torch.nn.functional.linear(x, weight, bias)
    bytes_, scale = packed.reshape(-1), absmax.reshape(-1)
    out = x.new_empty((*x.shape[:-1], m))
    for first in range(0, m, step):
        rows = min(step, m - first)
        part = dequantize_4bit(
            bytes_[first * n // 2 : -(-(first + rows) * n // 2)],
            scale[first * n // group_size : -(-(first + rows) * n // group_size)],
            codebook,
            group_size,
            (rows, n),
            x.dtype,
        )
        mine = None if bias is None else bias[first : first + rows]
        out[..., first : first + rows] = torch.nn.functional.linear(x, part, mine)
    return out
