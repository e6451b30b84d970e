"""Products of layouts whose arithmetic is plain Python, as one operator for ``torch.compile``.

Such a layout multiplies through tables it keeps, or asks the device what it can: neither can be
traced. While a model is traced, ``x @ W.T + bias`` becomes one operator that is given the weight's
tensors and, as text, the rest of what it is; when the compiled model runs, the operator puts the
weight together again and multiplies as ever. Outside tracing nothing changes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy_kitchen.tensor import base
from comfy_kitchen.tensor.base import (
    LAYOUTS,
    QuantizedTensor,
    dequantize_args,
    get_layout_class,
    register_layout_op,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from ..kernels.kitchen_cpu import register_backend

aten = torch.ops.aten

_DTYPE, _SHAPE = "dtype:", "shape:"


def traced(*tensors: Any) -> bool:
    """Whether any of these stands for a tensor while a model is traced."""
    return any(isinstance(tensor, FakeTensor | FunctionalTensor) for tensor in tensors)


def linear(x: Tensor, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
    """``x @ W.T + bias`` as one operator, ``W`` as stored; ``weight`` may be flagged transposed."""
    params = weight._params
    if getattr(params, "transposed", False):
        params = dataclasses.replace(params, orig_shape=params.orig_shape[::-1], transposed=False)
        weight = QuantizedTensor(weight._qdata, weight._layout_cls, params)
    tensors, description = _taken_apart(weight)
    bias = dequantize_args(bias)
    return torch.ops.roundsmith.layout_linear.default(x, tensors, description, bias)


def trace_whole(name: str) -> str:
    """Let products of comfy-kitchen's layout ``name`` be traced whole, once; returns the name.

    Layouts of our own see to it themselves (``OwnLayout.traced_whole``). Whoever runs such a layout
    on a CPU also gets products that suit it (:mod:`roundsmith.kernels.kitchen_cpu`).
    """
    register_backend()
    layout = LAYOUTS[name]
    if layout not in _whole and not hasattr(layout, "traced_whole"):
        _whole.add(layout)
        for op, operands in _PRODUCTS.items():
            handler = _handler(op, layout)
            if handler is not None:
                register_layout_op(op, layout)(_tracing(handler, layout, operands))
    return name


Operands = tuple[Any, Any, Any]

_whole: set[type] = set()
_PRODUCTS: dict[Any, Callable[..., Operands]] = {
    aten.linear.default: lambda x, weight, bias=None: (x, weight, bias),
    aten.mm.default: lambda x, weight: (x, weight, None),
    aten.addmm.default: lambda bias, x, weight: (x, weight, bias),
}


def _handler(op: Any, layout: type) -> Callable[..., Any] | None:
    """How ``layout`` runs ``op``; None where it decodes, or comfy-kitchen keeps that elsewhere."""
    handlers = getattr(base, "_LAYOUT_DISPATCH_TABLE", {}).get(op, {})
    return next((handlers[parent] for parent in layout.__mro__ if parent in handlers), None)


def _tracing(
    handler: Callable[..., Any], layout: type, operands: Callable[..., Operands]
) -> Callable[..., Any]:
    """``handler``, but one operator for traced inputs that are not quantized."""

    def run(qt: Any, args: Any, kwargs: Any) -> Any:
        if kwargs:
            return handler(qt, args, kwargs)
        x, weight, bias = operands(*args)
        ours = isinstance(weight, QuantizedTensor) and weight.layout_cls is layout
        if not ours or isinstance(x, QuantizedTensor) or not traced(x):
            return handler(qt, args, kwargs)
        transposed = getattr(weight._params, "transposed", False)
        if transposed == (operands is _PRODUCTS[aten.linear.default]):  # W itself is multiplied
            return handler(qt, args, kwargs)
        return linear(x, weight, bias)

    return run


def _taken_apart(weight: QuantizedTensor) -> tuple[list[Tensor], str]:
    """A weight's tensors, and everything else as text."""
    tensors = [weight._qdata]
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(weight._params):
        value = getattr(weight._params, field.name)
        if isinstance(value, Tensor):
            fields[field.name] = len(tensors)
            tensors.append(value)
        elif isinstance(value, torch.dtype):
            fields[field.name] = f"{_DTYPE}{value}".replace("torch.", "")
        elif isinstance(value, tuple):
            fields[field.name] = _SHAPE + ",".join(str(int(extent)) for extent in value)
        else:
            fields[field.name] = [value]  # a number, a word, or None
    return tensors, json.dumps({"layout": weight._layout_cls, "fields": fields})


def _put_together(tensors: Sequence[Tensor], description: str) -> QuantizedTensor:
    """Inverse of :func:`_taken_apart`."""
    told = json.loads(description)
    values: dict[str, Any] = {}
    for name, value in told["fields"].items():
        if isinstance(value, int):
            values[name] = tensors[value]
        elif isinstance(value, list):
            values[name] = value[0]
        elif value.startswith(_DTYPE):
            values[name] = getattr(torch, value.removeprefix(_DTYPE))
        else:
            values[name] = tuple(int(n) for n in value.removeprefix(_SHAPE).split(","))
    params = get_layout_class(told["layout"]).Params(**values)
    return QuantizedTensor(tensors[0], told["layout"], params)


def _layout_linear(
    x: Tensor, tensors: Sequence[Tensor], description: str, bias: Tensor | None
) -> Tensor:
    out = torch.nn.functional.linear(x, _put_together(tensors, description), bias)
    return out.contiguous()


def _fake(x: Tensor, tensors: Sequence[Tensor], description: str, bias: Tensor | None) -> Tensor:
    shape = json.loads(description)["fields"]["orig_shape"].removeprefix(_SHAPE)
    return x.new_empty((*x.shape[:-1], int(shape.split(",")[0])))


if not hasattr(torch.ops.roundsmith, "layout_linear"):
    torch.library.custom_op(
        "roundsmith::layout_linear", _layout_linear, mutates_args=()
    ).register_fake(_fake)
