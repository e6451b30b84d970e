"""A quantized layer's product as the device it lies on runs it, activations and all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from comfy_kitchen.tensor import QuantizedTensor

    from .format import Format


def quantizes_input(fmt: Format, weight: QuantizedTensor) -> bool:
    """Whether ComfyUI rounds the inputs to ``fmt``'s grid before the product with ``weight``.

    True where the format asks for it and the device multiplies its codes. INT8 layouts and our own
    are not among them: they round inputs inside the product.
    """
    return (
        fmt.core_quantizes_input and weight.is_cuda and weight.layout_cls.supports_fast_matmul()
    )


def executed_linear(
    fmt: Format,
    weight: QuantizedTensor,
    x: Tensor,
    input_scale: Tensor | None = None,
    full_precision: bool = False,
) -> Tensor:
    """``x @ W.T`` the way ComfyUI's linear layer computes it.

    Args:
        fmt: the format of the weight.
        weight: the quantized weight ``[M, N]``, on the device to run on.
        x: inputs ``[T, N]`` in the dtype the weight stands for, on the same device.
        input_scale: float32 ``[]``, the layer's fixed input scale, or None.
        full_precision: the layer asks for ``full_precision_matrix_mult``.

    Returns:
        ``[T, M]``.
    """
    if full_precision:
        return torch.nn.functional.linear(x, weight.dequantize().to(x.dtype))
    if quantizes_input(fmt, weight):
        from comfy_kitchen.tensor import QuantizedTensor

        x = QuantizedTensor.from_float(x, weight._layout_cls, scale=input_scale)
    elif fmt.core_quantizes_input:
        weight = weight.dequantize().to(x.dtype)
    return torch.nn.functional.linear(x, weight)
