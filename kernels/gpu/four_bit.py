"""Four-bit weights in Triton: decoding, and products with few rows.

With few rows a product is as fast as the weight is read. Packed bytes are decoded in registers;
high and low nibbles are even and odd columns, so that two products with every second column of
``x`` need no interleaving. Where the rows of the weight alone do not fill the device, several
programs share a row (split K) and a second, tiny kernel adds their sums in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tiles import Tile
from .numbers import DTYPES


@triton.jit
def _dequantize_kernel(
    packed: tl.tensor,
    absmax: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    group: tl.tensor,
    block: tl.constexpr,
) -> None:
    byte = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    two = tl.load(packed + byte, mask=byte * 2 < count, other=0).to(tl.int32)
    for half in tl.static_range(2):
        at = byte * 2 + half
        inside = at < count
        value = tl.load(table + ((two >> (4 - 4 * half)) & 15))
        scale = tl.load(absmax + at // group, mask=inside, other=0.0)
        tl.store(out + at, (value * scale).to(out.dtype.element_ty), mask=inside)


def dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    group_size: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """See :func:`...four_bit.dequantize_4bit`."""
    out = torch.empty(shape, dtype=dtype, device=packed.device)
    if out.numel():
        _dequantize_kernel[(triton.cdiv(packed.numel(), 1024),)](
            packed.contiguous(),
            absmax.float().contiguous(),
            codebook.float().contiguous(),
            out,
            out.numel(),
            group_size,
            block=1024,
            num_warps=4,
        )
    return out


@triton.jit
def _linear_kernel(
    x: tl.tensor,
    packed: tl.tensor,
    absmax: tl.tensor,
    table: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    t: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    slice_n: tl.tensor,
    stride_x: tl.tensor,
    group: tl.constexpr,
    aligned: tl.constexpr,
    biased: tl.constexpr,
    split: tl.constexpr,
    rounded: tl.constexpr,
    operand: tl.constexpr,
    block_t: tl.constexpr,
    block_m: tl.constexpr,
    block_b: tl.constexpr,
) -> None:
    """One tile of weight rows against all rows of ``x``, over one slice of columns.

    ``aligned``: each step lies in one group of each row. ``rounded`` is the dtype the weight is
    decoded to, ``operand`` what the product is made in.
    """
    row = tl.arange(0, block_t)
    col = tl.program_id(0) * block_m + tl.arange(0, block_m)
    part = tl.program_id(1)
    safe = (col % m).to(tl.int64)
    total = tl.zeros((block_t, block_m), dtype=tl.float32)
    stop = tl.minimum((part + 1) * slice_n, n)
    for start in range(part * slice_n, stop, 2 * block_b):
        even = start + 2 * tl.arange(0, block_b)
        inside = even < stop
        first = safe[None, :] * n + even[:, None]
        two = tl.load(packed + first // 2, mask=inside[:, None], other=0).to(tl.int32)
        if aligned:
            scale = tl.load(absmax + (safe * n + start) // group)[None, :]
        else:
            scale = tl.load(absmax + first // group, mask=inside[:, None], other=0.0)
        at = x + row.to(tl.int64)[:, None] * stride_x + even[None, :]
        mask = (row < t)[:, None] & inside[None, :]
        x_even = tl.load(at, mask=mask, other=0.0).to(operand)
        x_odd = tl.load(at + 1, mask=mask, other=0.0).to(operand)
        high = (tl.load(table + (two >> 4)) * scale).to(rounded).to(operand)
        low = (tl.load(table + (two & 15)) * scale).to(rounded).to(operand)
        total = tl.dot(x_even, high, total, input_precision="ieee")
        total = tl.dot(x_odd, low, total, input_precision="ieee")
    if biased and not split:
        total += tl.load(bias + safe).to(tl.float32)[None, :]
    mask = (row < t)[:, None] & (col < m)[None, :]
    at = (part.to(tl.int64) * t + row)[:, None] * m + col[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add_kernel(
    parts: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    m: tl.tensor,
    biased: tl.constexpr,
    split: tl.constexpr,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    total = tl.zeros((block,), dtype=tl.float32)
    for part in tl.static_range(split):
        total += tl.load(parts + part * count + at, mask=inside, other=0.0)
    if biased:
        total += tl.load(bias + at % m, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def linear_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    group_size: int,
    shape: tuple[int, int],
    bias: Tensor | None,
    *,
    tile: Tile,
    interpreted: bool = False,
) -> Tensor:
    """See :func:`...four_bit.linear_4bit`, for at most 16 rows; columns and ``group_size`` even.

    ``interpreted``: multiply in float32, as Triton's interpreter has no bfloat16 product.
    """
    m, n = shape
    rows = x.reshape(-1, n)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    t = rows.shape[0]
    out = torch.empty(t, m, dtype=x.dtype, device=x.device)
    if out.numel():
        slice_n = -(-n // (tile.split * tile.k)) * tile.k
        split = -(-n // slice_n)
        parts = out if split == 1 else out.new_empty(split, t, m, dtype=torch.float32)
        _linear_kernel[(triton.cdiv(m, tile.n), split)](
            rows,
            packed.contiguous(),
            absmax.float().contiguous(),
            codebook.float().contiguous(),
            parts if bias is None else bias.contiguous(),
            parts,
            t,
            m,
            n,
            slice_n,
            rows.stride(0),
            group=group_size,
            aligned=n % group_size == 0 and group_size % tile.k == 0,
            biased=bias is not None,
            split=split > 1,
            rounded=DTYPES[x.dtype],
            operand=tl.float32 if interpreted else DTYPES[x.dtype],
            block_t=16,
            block_m=tile.n,
            block_b=tile.k // 2,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        if split > 1:
            _add_kernel[(triton.cdiv(t * m, 256),)](
                parts,
                out if bias is None else bias.contiguous(),
                out,
                t * m,
                m,
                biased=bias is not None,
                split=split,
                block=256,
                num_warps=2,
            )
    return out.view(*x.shape[:-1], m)
