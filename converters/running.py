"""A layer of a checkpoint computed as ComfyUI computes it on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layouts import executed_linear
from .model import ModelView
from .preset_files import own_presets
from .presets import resolve
from .stored import parts_of


def decodes_weights(view: ModelView) -> bool:
    """Whether ComfyUI decodes every weight of such a model before its product: text encoders'."""
    return resolve("auto", view.names, own_presets(None)).detection.kind == "text_encoder"


def run_layer(
    view: ModelView,
    name: str,
    x: Tensor,
    bias: Tensor | None = None,
    decodes: bool = False,
) -> Tensor:
    """What ComfyUI's linear layer computes of ``x``: in float32 on a CPU, in bfloat16 on a GPU.

    Args:
        view: the model.
        name: of the layer's weight, quantized or not.
        x: inputs ``[T, N]``, on the device to run on.
        bias: ``[M]``, to add; or None.
        decodes: weights are decoded before the product (see :func:`decodes_weights`).

    Returns:
        ``[T, M]``.

    Raises:
        FormatError: the installed comfy-kitchen cannot run the layer's format.
    """
    dtype = torch.float32 if x.device.type == "cpu" else torch.bfloat16
    stored = view.stored_layer(name)
    if stored is None:
        w = view.read_rows(name, 0, view.shape(name)[0])
        y = torch.nn.functional.linear(x.to(dtype), w.to(x.device, dtype))
    else:
        parts = {s: t.to(x.device) for s, t in parts_of(view.source, stored).items()}
        scale = parts.get("input_scale")
        y = executed_linear(
            stored.format,
            stored.format.read(parts, stored.conf, dtype=dtype),
            x.to(dtype),
            None if scale is None or scale.numel() != 1 else scale.reshape(()).float(),
            decodes or bool(stored.conf.get("full_precision_matrix_mult", False)),
        )
    return y if bias is None else y + bias.to(y.device, y.dtype)
