"""How a loaded layer appears in a file, and what a weight is with its patches baked in."""

from __future__ import annotations

from typing import Any

import comfy.float
import comfy.lora
import comfy.model_management as mm
import comfy.utils
import torch
from comfy.model_patcher import get_key_weight
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..checkpoints import decode_conf, encode_conf
from ..layouts import formats
from .operations import stored_parts


def original_tensor(patcher: Any, key: str) -> Tensor:
    """A parameter or buffer of the model as it was before any patch was applied to it."""
    if key in patcher.hook_backup:
        return patcher.hook_backup[key][0]
    if key in patcher.backup:
        return patcher.backup[key].weight
    if key in getattr(patcher, "backup_buffers", {}):
        return patcher.backup_buffers[key]
    return comfy.utils.get_attr(patcher.model, key)


def patched_float(patcher: Any, key: str) -> Tensor:
    """A weight with its patches, float32, on the patcher's load device."""
    weight = original_tensor(patcher, key).detach()
    if isinstance(weight, QuantizedTensor):
        weight = weight.to(dtype=torch.float32).dequantize()
    weight = mm.cast_to_device(weight, patcher.load_device, torch.float32, copy=True)
    patches = patcher.patches.get(key, [])
    return comfy.lora.calculate_weight(
        patches, weight, key, torch.float32, original_weights=_Originals(patcher)
    )


def patched_as_loaded(patcher: Any, key: str) -> Tensor:
    """A weight with its patches in the dtype or format it has, rounded as ComfyUI rounds it."""
    original = original_tensor(patcher, key)
    if key not in patcher.patches:
        return original
    weight = patched_float(patcher, key)
    seed = comfy.utils.string_to_seed(key)
    set_weight = get_key_weight(patcher.model, key)[1]
    if set_weight is not None:
        return set_weight(weight, inplace_update=False, seed=seed, return_weight=True)
    return comfy.float.stochastic_rounding(weight, original.dtype, seed=seed)


def file_tensors(
    module: nn.Module, weight: QuantizedTensor, form: str | None = None
) -> dict[str, Tensor]:
    """The tensors of a quantized layer by suffix, its ``comfy_quant`` JSON included.

    Args:
        module: the layer.
        weight: stands for the module's own: the same one before or after patches.
        form: the form to be written, where the format has it; None for the one with JSON.
    """
    format_id = getattr(module, "quant_format", "")
    tensors = stored_parts(format_id, weight)
    scale = getattr(module, "input_scale", None)
    if scale is not None:
        tensors["input_scale"] = scale
    conf = decode_conf(module.state_dict()["comfy_quant"])
    fmt = formats().get(format_id)
    shape = tuple(weight.shape)
    if weight.is_padded if fmt is None else fmt.padded_shape(shape) != shape:
        conf.setdefault("orig_shape", list(weight.shape))
    conf.pop("form", None)
    if fmt is not None and not fmt.has_json({"form": form}):
        tensors = fmt.in_form(tensors, {**conf, "form": form})
    else:
        tensors["comfy_quant"] = encode_conf(conf)
    return {suffix: _storable(tensor.detach()) for suffix, tensor in tensors.items()}


def _storable(tensor: Tensor) -> Tensor:
    """Exponent-only scales are stored as bytes: ComfyUI's reader lacks their dtype."""
    if tensor.dtype is getattr(torch, "float8_e8m0fnu", None):
        return tensor.view(torch.uint8)
    return tensor


class _Originals:
    """``original_weights`` for patches that are differences of models: looked up when asked."""

    def __init__(self, patcher: Any) -> None:
        self._patcher = patcher

    def __getitem__(self, key: str) -> list[tuple[Tensor, Any]]:
        weight = original_tensor(self._patcher, key)
        if isinstance(weight, QuantizedTensor):
            weight = weight.dequantize()
        return [(weight, lambda tensor, **_: tensor)]
