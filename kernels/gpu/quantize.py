"""Quantizing in Triton: segments of rows (activations, row-wise weights), and 2-D blocks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numbers import (
    ACTIVATIONS,
    KINDS,
    activate,
    codes_as_bytes,
    decode,
    encode,
    row_absmax,
    scale_of,
)

_WIDEST = 16384
"""Columns that one program keeps in registers; longer rows are read twice."""


@triton.jit
def _load_values(
    x: tl.tensor,
    x_scale: tl.tensor,
    segment: tl.tensor,
    column: tl.tensor,
    segments: tl.tensor,
    groups: tl.tensor,
    length: tl.tensor,
    stride_row: tl.tensor,
    stride_col: tl.tensor,
    source: tl.constexpr,
    activation: tl.constexpr,
) -> tl.tensor:
    """Float32 values of a tile of segments, decoded and activated; 0 outside."""
    row = (segment // groups).to(tl.int64)
    first = (segment % groups) * length
    at = row[:, None] * stride_row + (first[:, None] + column[None, :]).to(tl.int64) * stride_col
    mask = (segment < segments)[:, None] & (column < length)[None, :]
    raw = tl.load(x + at, mask=mask, other=0)
    if source >= 0:
        scale = tl.load(x_scale + segment, mask=segment < segments, other=0.0)
        values = decode(raw, source) * scale[:, None]
    else:
        values = raw.to(tl.float32)
    return activate(values, activation)


@triton.jit
def _segments_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    segments: tl.tensor,
    groups: tl.tensor,
    length: tl.tensor,
    stride_row: tl.tensor,
    stride_col: tl.tensor,
    source: tl.constexpr,
    kind: tl.constexpr,
    activation: tl.constexpr,
    whole: tl.constexpr,
    block_s: tl.constexpr,
    block_l: tl.constexpr,
) -> None:
    segment = tl.program_id(0) * block_s + tl.arange(0, block_s)
    inside = segment < segments
    column = tl.arange(0, block_l)
    if whole:
        values = _load_values(
            x, x_scale, segment, column, segments, groups, length, stride_row, stride_col,
            source, activation,
        )  # fmt: skip
        found = scale_of(row_absmax(values), kind)
        at = segment.to(tl.int64)[:, None] * length + column[None, :]
        mask = inside[:, None] & (column < length)[None, :]
        tl.store(codes + at, encode(values, found[:, None], kind), mask=mask)
    else:
        absmax = tl.zeros((block_s,), dtype=tl.int32)  # bits, which keep NaN on top
        for start in range(0, length, block_l):
            values = _load_values(
                x, x_scale, segment, start + column, segments, groups, length, stride_row,
                stride_col, source, activation,
            )  # fmt: skip
            absmax = tl.maximum(absmax, row_absmax(values).to(tl.int32, bitcast=True))
        found = scale_of(absmax.to(tl.float32, bitcast=True), kind)
        for start in range(0, length, block_l):
            values = _load_values(
                x, x_scale, segment, start + column, segments, groups, length, stride_row,
                stride_col, source, activation,
            )  # fmt: skip
            at = segment.to(tl.int64)[:, None] * length + start + column[None, :]
            mask = inside[:, None] & (start + column < length)[None, :]
            tl.store(codes + at, encode(values, found[:, None], kind), mask=mask)
    tl.store(scale + segment, found, mask=inside)


def _quantize(
    x: Tensor, x_scale: Tensor | None, dtype: torch.dtype, group: int, activation: int
) -> tuple[Tensor, Tensor]:
    """Quantize ``x [T, K]``, floats or codes under ``x_scale [T, K/group]``, by row and group."""
    t, k = x.shape
    groups = k // group
    codes = torch.empty(t, k, dtype=dtype, device=x.device)
    scale = torch.empty(t, groups, dtype=torch.float32, device=x.device)
    segments = t * groups
    block_l = min(triton.next_power_of_2(group), _WIDEST)
    block_s = max(1, min(4096 // block_l, triton.next_power_of_2(max(segments, 1))))
    source = -1 if x_scale is None else KINDS[x.dtype]
    raw = x if x_scale is None else codes_as_bytes(x)
    if segments:
        _segments_kernel[(triton.cdiv(segments, block_s),)](
            raw,
            scale if x_scale is None else x_scale.contiguous(),
            codes_as_bytes(codes),
            scale,
            segments,
            groups,
            group,
            raw.stride(0),
            raw.stride(1),
            source=source,
            kind=KINDS[dtype],
            activation=activation,
            whole=group <= block_l,
            block_s=block_s,
            block_l=block_l,
            num_warps=4 if block_s * block_l <= 4096 else 8,
        )
    return codes, scale


def quantize_rows(x: Tensor, dtype: torch.dtype, group: int) -> tuple[Tensor, Tensor]:
    """See :func:`...activations.quantize_rows`."""
    return _quantize(x, None, dtype, group, ACTIVATIONS[None])


def gelu_quantize(
    x: Tensor, x_scale: Tensor | None, dtype: torch.dtype, group: int, approximate: str
) -> tuple[Tensor, Tensor]:
    """See :func:`...activations.gelu_quantize`."""
    return _quantize(x, x_scale, dtype, group, ACTIVATIONS[approximate])


@triton.jit
def _blocks_kernel(
    w: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    n: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    stride_row: tl.tensor,
    stride_col: tl.tensor,
    kind: tl.constexpr,
    block_r: tl.constexpr,
    block_c: tl.constexpr,
) -> None:
    across = n // cols
    block = tl.program_id(0)
    row, col = tl.arange(0, block_r), tl.arange(0, block_c)
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    m_at = ((block // across) * rows + row).to(tl.int64)[:, None]
    n_at = ((block % across) * cols + col).to(tl.int64)[None, :]
    values = tl.load(w + m_at * stride_row + n_at * stride_col, mask=mask, other=0).to(tl.float32)
    absmax = row_absmax(tl.reshape(values, (1, block_r * block_c)))
    found = scale_of(absmax, kind)
    tl.store(codes + m_at * n + n_at, encode(values, found[:, None], kind), mask=mask)
    tl.store(scale + block + tl.arange(0, 1), found)


def quantize_blocks(w: Tensor, dtype: torch.dtype, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """See :func:`...weights.quantize_blocks`; blocks of at most 2¹⁵ weights, or single rows."""
    if rows == 1:
        return quantize_rows(w, dtype, cols)
    m, n = w.shape
    codes = torch.empty(m, n, dtype=dtype, device=w.device)
    scale = torch.empty(m // rows, n // cols, dtype=torch.float32, device=w.device)
    block_r, block_c = triton.next_power_of_2(rows), triton.next_power_of_2(cols)
    if scale.numel():
        _blocks_kernel[(scale.numel(),)](
            w,
            codes_as_bytes(codes),
            scale,
            n,
            rows,
            cols,
            w.stride(0),
            w.stride(1),
            kind=KINDS[dtype],
            block_r=block_r,
            block_c=block_c,
            num_warps=4 if block_r * block_c <= 4096 else 8,
        )
    return codes, scale
