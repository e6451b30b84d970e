"""Products of other libraries, with the signatures of the references: PyTorch's, comfy-kitchen's.

Each is offered to the registry; which of them runs, on what, is told in ``implementations.py``.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_CHUNK = 1 << 26
"""INT32 sums held at once."""


def torch_int8(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """INT8 products by ``torch._int_mm`` (cuBLAS), a group at a time."""
    (t, k), n, groups = x.shape, w.shape[0], x_scale.shape[1]
    group = k // groups
    out = torch.empty(t, n, dtype=out_dtype, device=x.device)
    rows = w_scale.float().repeat_interleave(n // w_scale.shape[0], dim=0)  # [N, G]
    step = max(_CHUNK // max(n, 1), 32)
    for start in range(0, t, step):
        some = slice(start, min(start + step, t))
        y = torch.zeros(some.stop - start, n, dtype=torch.float32, device=x.device)
        for g in range(groups):
            part = slice(g * group, (g + 1) * group)
            sums = _int8_sums(x[some, part], w[:, part])
            y.addcmul_(sums * x_scale[some, g, None], rows[:, g])
        if bias is not None:
            y += bias
        out[some] = y
    return out


def _int8_sums(x: Tensor, w: Tensor) -> Tensor:
    """``x [T, K] @ w [N, K].T`` as INT32, padded to what the CUDA kernel takes."""
    t, k = x.shape
    n = w.shape[0]
    if x.is_cuda:
        pad_t, pad_k, pad_n = max(-t % 32, 0), -k % 32, -n % 32  # Turing is the strictest
        if pad_t or pad_k:
            x = torch.nn.functional.pad(x, (0, pad_k, 0, pad_t))
        if pad_n or pad_k:
            w = torch.nn.functional.pad(w, (0, pad_k, 0, pad_n))
    return torch._int_mm(x.contiguous(), w.contiguous().t())[:t, :n]


def torch_float8(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """FP8 products by ``torch._scaled_mm`` with one scale a row, a group at a time.

    One group for a bfloat16 result comes out as such; everything else in float32.
    """
    partial = torch.bfloat16 if _whole(x_scale, out_dtype) else torch.float32
    return _float8(x, x_scale, w, w_scale, bias, out_dtype, partial)


def torch_float8_rounded(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """:func:`torch_float8` of one group by way of bfloat16, all that some devices give."""
    return _float8(x, x_scale, w, w_scale, bias, out_dtype, torch.bfloat16)


def _whole(x_scale: Tensor, out_dtype: torch.dtype) -> bool:
    return x_scale.shape[1] == 1 and out_dtype == torch.bfloat16


def _float8(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    partial: torch.dtype,
) -> Tensor:
    (t, k), n, groups = x.shape, w.shape[0], x_scale.shape[1]
    group = k // groups
    rows = w_scale.float().repeat_interleave(n // w_scale.shape[0], dim=0)
    y: Tensor | None = None
    for g in range(groups):
        part = slice(g * group, (g + 1) * group)
        some = torch._scaled_mm(
            x[:, part].contiguous(),
            w[:, part].contiguous().t(),
            scale_a=x_scale[:, g, None].contiguous(),
            scale_b=rows[None, :, g].contiguous(),
            out_dtype=partial,
        )
        y = some if y is None else y.add_(some)
    if y is None:  # no columns
        y = torch.zeros(t, n, dtype=torch.float32, device=x.device)
    if bias is not None:
        y = y.float() + bias
    return y.to(out_dtype)


def torch_float8_blocks(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """FP8 products by ``torch._scaled_mm`` with scales over 1×128 and 128×128 blocks (cuBLAS)."""
    y = torch._scaled_mm(
        x.contiguous(),
        w.t(),
        scale_a=x_scale.t().contiguous().t(),  # cuBLAS wants tokens contiguous
        scale_b=w_scale.float().t(),
        out_dtype=torch.bfloat16,
    )
    return y.to(out_dtype) if bias is None else (y.float() + bias).to(out_dtype)


def kitchen_int8(
    x: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, weight_dtype: torch.dtype
) -> Tensor:
    """comfy-kitchen's INT8 linear with one scale a row, activations quantized inside it."""
    from comfy_kitchen import int8_linear

    return int8_linear(x.contiguous(), w, w_scale, bias, out_dtype=x.dtype)


@cache
def kitchen_accelerates_int8() -> bool:
    """Whether comfy-kitchen has a kernel of its own for INT8 layers here, not only PyTorch's."""
    try:
        import comfy_kitchen
    except ImportError:
        return False
    backends = comfy_kitchen.list_backends()
    return any(
        state["available"] and not state["disabled"] and "int8_linear" in state["capabilities"]
        for name, state in backends.items()
        if name != "eager"
    )
