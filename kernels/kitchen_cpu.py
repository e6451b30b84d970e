"""A comfy-kitchen backend for CPUs without INT8 instructions.

There PyTorch's INT8 product takes some thirty times as long as the same product in float32.
Products of INT8 are whole numbers that float32 holds exactly over 1024 columns, so that float32
gives the same sums; they are added up as INT32. comfy-kitchen's registry offers this backend what
lies on a CPU and asks for nothing besides the product; everything else stays with its own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from .grouped import decode_grouped
from .products import row_tiles

NAME = "roundsmith"
_EXACT = 1024
"""Columns over which a sum of products of INT8 is below 2²⁴."""


def integer_sums(x: Tensor, w: Tensor) -> Tensor:
    """INT32 ``x [T, K] @ w [N, K].T`` of whole numbers in −128 … 127, both given as float32."""
    sums = torch.zeros(x.shape[0], w.shape[0], dtype=torch.int32, device=x.device)
    for start in range(0, x.shape[1], _EXACT):
        some = slice(start, start + _EXACT)
        sums += (x[:, some] @ w[:, some].t()).to(torch.int32)
    return sums


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    convrot: bool = False,
    convrot_groupsize: int = 256,
    **_: Any,
) -> Tensor:
    """comfy-kitchen's ``int8_linear``: inputs rotated and rounded, one scale a token, by its own
    functions; the weight ``[N, K]`` is widened a tile of rows at a time."""
    from comfy_kitchen.registry import registry
    from comfy_kitchen.tensor.int8_utils import _build_hadamard, _rotate_activation

    n, k = weight.shape
    if convrot:
        matrix = _build_hadamard(convrot_groupsize, device=x.device, dtype=x.dtype)
        x = _rotate_activation(x, matrix, convrot_groupsize)
    rows = x.reshape(-1, k)
    codes, scale = registry.get_implementation("quantize_int8_rowwise")(rows)
    values, scale = codes.to(torch.float32), scale.to(torch.float32).reshape(-1, 1)
    columns = weight_scale.to(torch.float32).reshape(1, -1).expand(1, n)
    out = torch.empty(rows.shape[0], n, dtype=out_dtype, device=x.device)
    for part in row_tiles(n, k, 1):
        sums = integer_sums(values, weight[part].to(torch.float32)).to(torch.float32)
        out[:, part] = sums * (scale * columns[:, part])
    if bias is not None:
        out += bias.to(out_dtype)
    return out.view(*x.shape[:-1], n)


def w4a8_int8_linear(
    x: Tensor,
    qdata: Tensor,
    s_rel: Tensor,
    s_channel: Tensor,
    codebook: Tensor | None = None,
    correction: Tensor | None = None,
    bias: Tensor | None = None,
    group_size: int = 16,
    convrot_groupsize: int = 256,
    out_dtype: torch.dtype = torch.bfloat16,
    **_: Any,
) -> Tensor:
    """comfy-kitchen's ``w4a8_int8_linear`` without a correction: decoded to INT8, a tile of rows at
    a time, and multiplied as such."""
    n, k = qdata.shape[0], x.shape[-1]
    out = torch.empty(*x.shape[:-1], n, dtype=out_dtype, device=x.device)
    for part in row_tiles(n, k, 1):
        out[..., part] = int8_linear(
            x,
            decode_grouped(qdata[part], s_rel[part], codebook, group_size),
            s_channel[part],
            None if bias is None else bias[part],
            out_dtype,
            convrot=True,
            convrot_groupsize=convrot_groupsize,
        )
    return out


def slow_int8() -> bool:
    """Whether PyTorch's INT8 product on this CPU has no instructions for it."""
    return not torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX"))


def register_backend() -> bool:
    """Offer this backend to comfy-kitchen, once, where the CPU needs it; tells whether it has it.

    A comfy-kitchen whose registry works otherwise goes without.
    """
    try:
        from comfy_kitchen.constraints import (
            FunctionConstraints,
            ParamConstraint,
            ValidationResult,
        )
        from comfy_kitchen.registry import registry
        from comfy_kitchen.tensor.int8_utils import _build_hadamard, _rotate_activation  # noqa: F401
    except ImportError:
        return False
    if registry.is_available(NAME):
        return True
    order = getattr(registry, "_priority", None)
    if not slow_int8() or not isinstance(order, list) or "eager" not in order:
        return False

    def only_the_product(given: Any) -> Any:
        for name in ("input_act", "residual", "correction"):
            if given.get(name) is not None:
                return ValidationResult.fail(name, "left to the eager backend")
        return ValidationResult.ok()

    floats = frozenset({torch.float32, torch.float16, torch.bfloat16})
    try:
        constraints = FunctionConstraints(
            params={"x": ParamConstraint(dtypes=floats)},
            default_devices=frozenset({"cpu"}),
            call_rules=(only_the_product,),
        )
    except TypeError:
        return False
    capabilities = {"int8_linear": constraints, "w4a8_int8_linear": constraints}
    registry.register(NAME, sys.modules[__name__], capabilities)
    at = order.index("eager")
    registry.set_priority([*order[:at], NAME, *order[at:]])
    return True
