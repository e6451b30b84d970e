"""Decoding block-scaled matrices in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numbers import KINDS, codes_as_bytes, decode


@triton.jit
def _dequantize_kernel(
    codes: tl.tensor,
    scale: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    stride_row: tl.tensor,
    stride_col: tl.tensor,
    kind: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
) -> None:
    row = tl.program_id(1) * block_m + tl.arange(0, block_m)
    col = tl.program_id(0) * block_n + tl.arange(0, block_n)
    mask = (row < m)[:, None] & (col < n)[None, :]
    long = row.to(tl.int64)[:, None]
    raw = tl.load(codes + long * stride_row + col[None, :] * stride_col, mask=mask, other=0)
    at = (row // rows)[:, None] * (n // cols) + (col // cols)[None, :]
    factor = tl.load(scale + at, mask=mask, other=0.0)
    values = decode(raw, kind) * factor
    tl.store(out + long * n + col[None, :], values.to(out.dtype.element_ty), mask=mask)


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """See :func:`...blocks.dequantize`."""
    m, n = codes.shape
    out = torch.empty(m, n, dtype=dtype, device=codes.device)
    if not out.numel():
        return out
    raw = codes_as_bytes(codes)
    block_n = min(triton.next_power_of_2(n), 1024)
    block_m = max(1, min(4096 // block_n, triton.next_power_of_2(m)))
    _dequantize_kernel[(triton.cdiv(n, block_n), triton.cdiv(m, block_m))](
        raw,
        scale.float().contiguous(),
        out,
        m,
        n,
        m // scale.shape[0],
        n // scale.shape[1],
        raw.stride(0),
        raw.stride(1),
        kind=KINDS[codes.dtype],
        block_m=block_m,
        block_n=block_n,
        num_warps=4,
    )
    return out
