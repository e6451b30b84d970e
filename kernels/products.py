"""Products of two block-scaled matrices, ``x @ w.T``, on the hardware's 8-bit units where it has
them.

``x`` carries one scale a row and group of columns, ``w`` one a row (or block of rows) and the same
groups. For one group at a time the scales leave the sum, so the sum runs in 8 bits::

    y[t, n] = Σ_g x_scale[t, g] · w_scale[n, g] · Σ_{k ∈ g} x[t, k] · w[n, k]
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .blocks import dequantize

_FLOAT8 = (torch.float8_e4m3fn,)


@cache
def _probe_int8(device: str) -> bool:
    """Whether ``torch._int_mm`` runs on ``device``."""
    a = torch.ones(32, 32, dtype=torch.int8, device=device)
    try:
        return bool((torch._int_mm(a, a.t()) == 32).all())
    except (RuntimeError, NotImplementedError):
        return False


@cache
def _probe_float8(device: str, out_dtype: torch.dtype) -> bool:
    """Whether ``torch._scaled_mm`` takes one scale a row on ``device`` (CUDA, compute ≥ 8.9).

    Sums over several groups need float32 out of it, which some devices have and others refuse.
    """
    if not device.startswith("cuda"):
        return False
    a = torch.ones(32, 32, device=device).to(torch.float8_e4m3fn)
    one = torch.ones(32, 1, device=device)
    try:
        y = torch._scaled_mm(a, a.t(), scale_a=one, scale_b=one.t(), out_dtype=out_dtype)
        return bool((y == 32).all())
    except (RuntimeError, NotImplementedError, TypeError):
        return False


def hardware_product(dtype: torch.dtype, device: torch.device, groups: int = 1) -> bool:
    """Whether ``device`` multiplies matrices of ``dtype`` codes in ``groups`` without decoding."""
    if dtype == torch.int8:
        return _probe_int8(str(device))
    return dtype in _FLOAT8 and _probe_float8(str(device), _partial_dtype(groups))


def _partial_dtype(groups: int) -> torch.dtype:
    """Dtype of FP8 partial products: what is summed over groups is float32."""
    return torch.bfloat16 if groups == 1 else torch.float32


def _int8_group(x: Tensor, w: Tensor) -> Tensor:
    """``x [T, K] @ w [N, K].T`` in INT8 with INT32 sums, padded to what the CUDA kernel takes."""
    t, k = x.shape
    n = w.shape[0]
    if x.is_cuda:
        pad_t, pad_k, pad_n = max(17 - t, 0), -k % 8, -n % 8
        if pad_t or pad_k:
            x = torch.nn.functional.pad(x, (0, pad_k, 0, pad_t))
        if pad_n or pad_k:
            w = torch.nn.functional.pad(w, (0, pad_k, 0, pad_n))
    return torch._int_mm(x.contiguous(), w.contiguous().t())[:t, :n]


def _fits_hardware(w: Tensor, groups: int) -> bool:
    if not hardware_product(w.dtype, w.device, groups):
        return False
    n, k = w.shape
    return w.dtype == torch.int8 or (k // groups % 16 == 0 and n % 16 == 0)


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
        ``[T, N]`` in ``out_dtype``. Hardware and eager paths sum the same products in float32 and
        agree to the rounding of ``out_dtype``.
    """
    (t, k), n, groups = x.shape, w.shape[0], x_scale.shape[1]
    group = k // groups
    if t == 0 or not _fits_hardware(w, groups):
        y = dequantize(x, x_scale) @ dequantize(w, w_scale).t()
    else:
        rows = w_scale.float().repeat_interleave(n // w_scale.shape[0], dim=0)  # [N, G]
        y = torch.zeros(t, n, dtype=torch.float32, device=x.device)
        for g in range(groups):
            part = slice(g * group, (g + 1) * group)
            if w.dtype == torch.int8:
                y.addcmul_(_int8_group(x[:, part], w[:, part]) * x_scale[:, g, None], rows[:, g])
            else:
                y += torch._scaled_mm(
                    x[:, part].contiguous(),
                    w[:, part].contiguous().t(),
                    scale_a=x_scale[:, g, None].contiguous(),
                    scale_b=rows[None, :, g].contiguous(),
                    out_dtype=_partial_dtype(groups),
                )
    if bias is not None:
        y += bias
    return y.to(out_dtype)
