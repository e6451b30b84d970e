"""The operations as PyTorch operators: what layouts call, and what ``torch.compile`` sees.

Each asks the registry for an implementation when it runs; while a model is traced only the shapes
and dtypes of the result are needed. Arguments and results are those of the eager references.
Loaded twice, as a ComfyUI node pack beside an installed package, the first registration serves
both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import implementations  # noqa: F401 fills the registry
from .machine import machine
from .registry import Case, call

_NAMESPACE = "roundsmith"
__all__ = [
    "dequantize",
    "dequantize_4bit",
    "gelu_quantize",
    "linear",
    "linear_4bit",
    "quantize_blocks",
    "quantize_rows",
    "scaled_linear",
    "scaled_linear_quantized",
]


def _operator(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function under its name; ``fake`` makes an empty result of its arguments."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        if not hasattr(getattr(torch.ops, _NAMESPACE), name):
            operator = torch.library.custom_op(f"{_NAMESPACE}::{name}", function, mutates_args=())
            operator.register_fake(fake)
        return getattr(getattr(torch.ops, _NAMESPACE), name).default

    return decorate


def _rows_fake(x: Tensor, dtype: torch.dtype, group: int) -> tuple[Tensor, Tensor]:
    scale = x.new_empty((x.shape[0], x.shape[1] // group), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=dtype), scale


@_operator(_rows_fake)
def quantize_rows(x: Tensor, dtype: torch.dtype, group: int) -> tuple[Tensor, Tensor]:
    """See :func:`.activations.quantize_rows`."""
    t, k = x.shape
    case = Case("quantize_rows", dtype, t, 0, k, group, float_dtype=x.dtype)
    return call(machine(x.device), case, x, dtype, group)


def _blocks_fake(w: Tensor, dtype: torch.dtype, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    scale = w.new_empty((w.shape[0] // rows, w.shape[1] // cols), dtype=torch.float32)
    return w.new_empty(w.shape, dtype=dtype), scale


@_operator(_blocks_fake)
def quantize_blocks(w: Tensor, dtype: torch.dtype, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """See :func:`.activations.quantize_blocks`."""
    n, k = w.shape
    case = Case("quantize_blocks", dtype, 0, n, k, cols, rows, float_dtype=w.dtype)
    return call(machine(w.device), case, w, dtype, rows, cols)


def _gelu_fake(
    x: Tensor, x_scale: Tensor | None, dtype: torch.dtype, group: int, approximate: str
) -> tuple[Tensor, Tensor]:
    return _rows_fake(x, dtype, group)


@_operator(_gelu_fake)
def gelu_quantize(
    x: Tensor, x_scale: Tensor | None, dtype: torch.dtype, group: int, approximate: str
) -> tuple[Tensor, Tensor]:
    """See :func:`.activations.gelu_quantize`."""
    t, k = x.shape
    floats = torch.float32 if x_scale is not None else x.dtype
    case = Case("gelu_quantize", dtype, t, 0, k, group, float_dtype=floats)
    return call(machine(x.device), case, x, x_scale, dtype, group, approximate)


def _dequantize_fake(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return codes.new_empty(codes.shape, dtype=dtype)


@_operator(_dequantize_fake)
def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """See :func:`.blocks.dequantize`."""
    n, k = codes.shape
    rows, group = n // max(scale.shape[0], 1), k // max(scale.shape[1], 1)
    case = Case("dequantize", codes.dtype, 0, n, k, group, rows, float_dtype=dtype)
    return call(machine(codes.device), case, codes, scale, dtype)


def _linear_fake(
    x: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, weight_dtype: torch.dtype
) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]))


@_operator(_linear_fake)
def linear(
    x: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, weight_dtype: torch.dtype
) -> Tensor:
    """``x @ w.T + bias`` for floating ``x [..., K]``, in its dtype.

    Where the device multiplies codes of the weight's dtype, ``x`` is quantized and codes are
    multiplied (:func:`.products.coded_linear`); elsewhere the weight is decoded
    (:func:`.products.decoded_linear`). The other arguments are those functions'.
    """
    n, k = w.shape
    rows = x.reshape(-1, k)
    case = Case(
        "linear", w.dtype, rows.shape[0], n, k, k // max(w_scale.shape[1], 1),
        n // max(w_scale.shape[0], 1), float_dtype=x.dtype,
    )  # fmt: skip
    out = call(machine(w.device), case, rows, w, w_scale, bias, weight_dtype)
    return out.view(*x.shape[:-1], n)


def _scaled_linear_fake(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    return x.new_empty((x.shape[0], w.shape[0]), dtype=out_dtype)


@_operator(_scaled_linear_fake)
def scaled_linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See :func:`.products.scaled_linear`."""
    case = _product("scaled_linear", x, x_scale, w, w_scale, out_dtype)
    return call(machine(w.device), case, x, x_scale, w, w_scale, bias, out_dtype)


def _scaled_linear_quantized_fake(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_group: int,
    gelu: str | None,
) -> tuple[Tensor, Tensor]:
    t, n = x.shape[0], w.shape[0]
    return x.new_empty((t, n)), x.new_empty((t, -(-n // out_group)), dtype=torch.float32)


@_operator(_scaled_linear_quantized_fake)
def scaled_linear_quantized(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_group: int,
    gelu: str | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`.products.scaled_linear_quantized`."""
    case = _product("scaled_linear_quantized", x, x_scale, w, w_scale, torch.float32, out_group)
    return call(machine(w.device), case, x, x_scale, w, w_scale, bias, out_group, gelu)


def _product(
    op: str,
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    out_dtype: torch.dtype,
    out_group: int = 0,
) -> Case:
    (t, k), n = x.shape, w.shape[0]
    group, rows = k // max(x_scale.shape[1], 1), n // max(w_scale.shape[0], 1)
    return Case(op, w.dtype, t, n, k, group, rows, out_group, out_dtype)


def _dequantize_4bit_fake(
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty(tuple(shape), dtype=dtype)


@_operator(_dequantize_4bit_fake)
def dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """See :func:`.four_bit.dequantize_4bit`."""
    m, n = shape
    case = Case("dequantize_4bit", torch.uint8, 0, m, n, group_size, float_dtype=dtype)
    return call(machine(packed.device), case, packed, absmax, codebook, group_size, (m, n), dtype)


def _linear_4bit_fake(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    group_size: int,
    shape: Sequence[int],
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))


@_operator(_linear_4bit_fake)
def linear_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    group_size: int,
    shape: Sequence[int],
    bias: Tensor | None = None,
) -> Tensor:
    """See :func:`.four_bit.linear_4bit`."""
    m, n = shape
    t = x.numel() // max(n, 1)
    case = Case("linear_4bit", torch.uint8, t, m, n, group_size, float_dtype=x.dtype)
    return call(machine(x.device), case, x, packed, absmax, codebook, group_size, (m, n), bias)
