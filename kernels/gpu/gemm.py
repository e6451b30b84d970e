"""Products of block-scaled matrices in Triton, with fused bias and requantized output.

One kernel serves INT8 and FP8, one scale a row and scales by blocks. Weights are read as stored,
``[N, K]``: both operands have ``K`` contiguous, which 8-bit tensor cores ask for. INT8 sums are
exact in INT32 over a whole group; FP8 sums leave the tensor core's accumulator for float32 at each
group, and every 128 products in rows without groups.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tiles import Tile
from .numbers import (
    ACTIVATIONS,
    KINDS,
    NONE,
    activate,
    codes_as_bytes,
    encode,
    row_absmax,
    scale_of,
)


@triton.jit
def _tile(
    t: tl.tensor,
    n: tl.tensor,
    block_t: tl.constexpr,
    block_n: tl.constexpr,
    band: tl.constexpr,
) -> tl.tensor:
    """Row and column of this program's tile; ``band`` rows of tiles go together, for the cache."""
    program = tl.program_id(0)
    across, down = tl.cdiv(n, block_n), tl.cdiv(t, block_t)
    first = (program // (band * across)) * band
    height = tl.minimum(down - first, band)
    inside = program % (band * across)
    return first + inside % height, inside // height


@triton.jit
def _gemm_kernel(
    x: tl.tensor,
    w: tl.tensor,
    out: tl.tensor,
    out_scale: tl.tensor,
    x_scale: tl.tensor,
    w_scale: tl.tensor,
    bias: tl.tensor,
    t: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    group: tl.tensor,
    w_rows: tl.tensor,
    stride_x: tl.tensor,
    stride_w: tl.tensor,
    integer: tl.constexpr,
    one_group: tl.constexpr,
    flat_scale: tl.constexpr,
    even_k: tl.constexpr,
    biased: tl.constexpr,
    activation: tl.constexpr,
    requantize: tl.constexpr,
    block_t: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    band: tl.constexpr,
) -> None:
    tile_t, tile_n = _tile(t, n, block_t, block_n, band)
    row = tile_t * block_t + tl.arange(0, block_t)
    col = tile_n * block_n + tl.arange(0, block_n)
    deep = tl.arange(0, block_k)
    safe_row, safe_col = row % t, col % n  # what lies outside is computed and not stored
    groups = k // group
    x_at = x + safe_row.to(tl.int64)[:, None] * stride_x + deep[None, :]
    w_at = w + safe_col.to(tl.int64)[None, :] * stride_w + deep[:, None]
    xs_at = x_scale + safe_row.to(tl.int64) * groups
    if flat_scale:  # the whole tile lies in one row of weight scales
        ws_at = w_scale + (tile_n * block_n // w_rows) * groups
    else:
        ws_at = w_scale + (safe_col // w_rows) * groups

    if one_group and integer:
        total = tl.zeros((block_t, block_n), dtype=tl.int32)
    else:
        total = tl.zeros((block_t, block_n), dtype=tl.float32)
    for start in range(0, k, block_k):
        if even_k:
            a, b = tl.load(x_at), tl.load(w_at)
        else:
            a = tl.load(x_at, mask=(start + deep < k)[None, :], other=0.0)
            b = tl.load(w_at, mask=(start + deep < k)[:, None], other=0.0)
        if one_group:
            if integer:
                total = tl.dot(a, b, total, out_dtype=tl.int32)
            else:
                total = tl.dot(a, b, total, max_num_imprecise_acc=min(block_k, 128))
        else:
            at = start // group
            xs = tl.load(xs_at + at)
            part = tl.dot(a, b, out_dtype=tl.int32).to(tl.float32) if integer else tl.dot(a, b)
            if flat_scale:
                total += part * (xs * tl.load(ws_at + at))[:, None]
            else:
                total += part * xs[:, None] * tl.load(ws_at + at)[None, :]
        x_at += block_k
        w_at += block_k

    if one_group:
        total = total.to(tl.float32) * tl.load(xs_at)[:, None]
        total = total * tl.load(ws_at) if flat_scale else total * tl.load(ws_at)[None, :]
    if biased:
        total += tl.load(bias + safe_col).to(tl.float32)[None, :]
    if activation != NONE:
        total = activate(total, activation)
    mask = (row < t)[:, None] & (col < n)[None, :]
    long = row.to(tl.int64)
    if requantize >= 0:
        total = tl.where(mask, total, 0.0)
        found = scale_of(row_absmax(total), requantize)
        codes = encode(total, found[:, None], requantize)
        tl.store(out + long[:, None] * n + col[None, :], codes, mask=mask)
        tl.store(out_scale + long * tl.cdiv(n, block_n) + tile_n, found, mask=row < t)
    else:
        values = total.to(out.dtype.element_ty)
        tl.store(out + long[:, None] * n + col[None, :], values, mask=mask)


def _launch(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out: Tensor,
    out_scale: Tensor | None,
    activation: str | None,
    tile: Tile,
) -> None:
    (t, k), n = x.shape, w.shape[0]
    group, w_rows = k // x_scale.shape[1], n // w_scale.shape[0]
    if not t or not n:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    w = w if w.stride(1) == 1 else w.contiguous()
    target = out if out_scale is None else codes_as_bytes(out)
    _gemm_kernel[(triton.cdiv(t, tile.t) * triton.cdiv(n, tile.n),)](
        x,
        w,
        target,
        x_scale if out_scale is None else out_scale,
        x_scale.float().contiguous(),
        w_scale.float().contiguous(),
        x_scale if bias is None else bias.contiguous(),
        t,
        n,
        k,
        group,
        w_rows,
        x.stride(0),
        w.stride(0),
        integer=x.dtype == torch.int8,
        one_group=group == k,
        flat_scale=w_rows % tile.n == 0,
        even_k=k % tile.k == 0,
        biased=bias is not None,
        activation=ACTIVATIONS[activation],
        requantize=-1 if out_scale is None else KINDS[out.dtype],
        block_t=tile.t,
        block_n=tile.n,
        block_k=tile.k,
        band=tile.band,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def scaled_linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    *,
    tile: Tile,
) -> Tensor:
    """See :func:`...products.scaled_linear`; ``tile.k`` divides the columns that share a scale."""
    out = torch.empty(x.shape[0], w.shape[0], dtype=out_dtype, device=x.device)
    _launch(x, x_scale, w, w_scale, bias, out, None, None, tile)
    return out


def scaled_linear_quantized(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_group: int,
    gelu: str | None,
    *,
    tile: Tile,
) -> tuple[Tensor, Tensor]:
    """See :func:`...products.scaled_linear_quantized`; ``tile.n`` is ``out_group``."""
    t, n = x.shape[0], w.shape[0]
    out = torch.empty(t, n, dtype=x.dtype, device=x.device)
    scale = torch.empty(t, -(-n // out_group), dtype=torch.float32, device=x.device)
    _launch(x, x_scale, w, w_scale, bias, out, scale, gelu, tile)
    return out, scale
