"""Layouts of our own: what QuantizedTensor does with them, whatever their codes and scales.

A layout says how it multiplies (:meth:`OwnLayout.multiply`) and which views it survives; products,
transposes, views and the like follow here. Operations not listed decode first.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from comfy_kitchen.tensor.base import (
    QuantizedLayout,
    QuantizedTensor,
    dequantize_args,
    register_layout_op,
)
from torch import Tensor

from . import traced

aten = torch.ops.aten


class OwnLayout(QuantizedLayout):
    """A layout of ours. Its ``Params`` have a field ``transposed``: shape and codes are swapped
    logically.

    Attributes:
        traced_whole: :meth:`multiply` does what cannot be traced; ``torch.compile`` takes it whole.
    """

    traced_whole: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def multiply(cls, x: Any, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
        """``x [..., K] @ weight.T + bias`` with ``weight`` of this layout, as stored ``[N, K]``."""

    @classmethod
    def viewed(cls, tensor: QuantizedTensor, size: tuple[int, ...]) -> QuantizedTensor | None:
        """``tensor`` reshaped to ``size`` as codes; None where that needs decoding."""
        return None

    @classmethod
    def gelu(cls, tensor: QuantizedTensor, approximate: str) -> QuantizedTensor:
        """GELU of a tensor as stored, quantized again."""
        out = torch.nn.functional.gelu(tensor.dequantize(), approximate=approximate)
        return tensor.requantize_from_float(out)


def _is_ours(value: object) -> bool:
    return isinstance(value, QuantizedTensor) and issubclass(value.layout_cls, OwnLayout)


def _product(x: Any, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
    if weight.layout_cls.traced_whole and traced.traced(x):
        return traced.linear(x, weight, bias)
    return weight.layout_cls.multiply(x, weight, bias)


@register_layout_op(aten.linear.default, OwnLayout)
def _linear(qt: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    if not _is_ours(weight) or weight._params.transposed or weight.ndim != 2:
        return torch.nn.functional.linear(*dequantize_args((x, weight, bias)))
    return _product(x, weight, dequantize_args(bias))


@register_layout_op(aten.mm.default, OwnLayout)
def _mm(qt: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight = args[0], args[1]
    if not _is_ours(weight) or not weight._params.transposed:
        return torch.mm(*dequantize_args((x, weight)))
    return _product(x, weight, None)


@register_layout_op(aten.addmm.default, OwnLayout)
def _addmm(qt: Any, args: Any, kwargs: Any) -> Tensor:
    bias, x, weight = args[0], args[1], args[2]
    plain = kwargs.get("beta", 1) == 1 and kwargs.get("alpha", 1) == 1 and bias.ndim == 1
    if not plain or not _is_ours(weight) or not weight._params.transposed:
        return torch.addmm(*dequantize_args((bias, x, weight)), **kwargs)
    return _product(x, weight, dequantize_args(bias))


def _flip(qt: QuantizedTensor) -> QuantizedTensor:
    params = qt._params
    flipped = dataclasses.replace(
        params, orig_shape=params.orig_shape[::-1], transposed=not params.transposed
    )
    return QuantizedTensor(qt._qdata, qt._layout_cls, flipped)


@register_layout_op(aten.t.default, OwnLayout)
def _t(qt: Any, args: Any, kwargs: Any) -> Any:
    return _flip(args[0]) if args[0].ndim == 2 else args[0].dequantize()


@register_layout_op(aten.transpose.int, OwnLayout)
def _transpose(qt: Any, args: Any, kwargs: Any) -> Any:
    tensor, a, b = args[0], args[1], args[2]
    ndim = tensor.ndim
    if ndim == 2 and (a % ndim) != (b % ndim):
        return _flip(tensor)
    return torch.transpose(tensor.dequantize(), a, b)


def _view(qt: Any, args: Any, kwargs: Any) -> Any:
    tensor, size = args[0], list(args[1])
    params = tensor._params
    if not params.transposed and -1 in size and tensor.numel():
        known = 1
        for extent in size:
            known *= extent if extent != -1 else 1
        size[size.index(-1)] = tensor.numel() // known
    if tuple(size) == tuple(tensor.shape):  # a view is a new tensor, even where nothing changes
        return QuantizedTensor(tensor._qdata, tensor._layout_cls, params)
    if not params.transposed and size:
        viewed = tensor.layout_cls.viewed(tensor, tuple(size))
        if viewed is not None:
            return viewed
    return tensor.dequantize().reshape(size)


for _op in (aten.view.default, aten.reshape.default, aten._unsafe_view.default):
    register_layout_op(_op, OwnLayout)(_view)


@register_layout_op(aten.gelu.default, OwnLayout)
def _gelu(qt: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    if tensor._params.transposed:
        return torch.nn.functional.gelu(tensor.dequantize(), **kwargs)
    return tensor.layout_cls.gelu(tensor, kwargs.get("approximate", "none"))


@register_layout_op(aten.add_.Tensor, OwnLayout)
def _add_(qt: Any, args: Any, kwargs: Any) -> Any:
    target, other = args[0], args[1]
    if not isinstance(target, QuantizedTensor):
        return target.add_(dequantize_args(other), **kwargs)
    total = torch.add(target.dequantize(), dequantize_args(other), **kwargs)
    if target._params.transposed:
        total = total.t()
    fresh = target.requantize_from_float(total.contiguous())
    fresh = _flip(fresh) if target._params.transposed else fresh
    target._qdata.copy_(fresh._qdata)
    target._params.copy_from(fresh._params)
    return target
