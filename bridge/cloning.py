"""Copy a loaded model's modules without its weights, so that other weights can be put in.

The copy is made from the live objects, not from a configuration: it works for any model ComfyUI
loaded, and keeps what its loader set up. Nothing of the original is changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor, nn

from ..errors import RoundsmithError

# What ComfyUI's patchers leave on modules and models while these are loaded.
MODULE_STATE = (
    "_v",
    "_v_weight",
    "_v_bias",
    "_v_signature",
    "_v_block",
    "_prefetch",
    "_pins",
    "_pin_state",
    "_resident_bank",
    "weight_lowvram_function",
    "bias_lowvram_function",
    "weight_function",
    "bias_function",
    "comfy_patched_weights",
)
MODEL_STATE = (
    "current_patcher",
    "dynamic_vbars",
    "dynamic_pins",
    "dynamic_patchers",
    "model_loaded_weight_memory",
    "lowvram_patch_counter",
    "model_lowvram",
    "current_weight_patches_uuid",
    "model_offload_buffer_memory",
)
ATOMIC = (int, float, str, bool, bytes, type(None))


def clone_structure(model: nn.Module, patcher: Any) -> nn.Module:
    """A deep copy of ``model`` whose parameters are placeholders on the meta device.

    Args:
        model: the module tree a ModelPatcher holds.
        patcher: that patcher; object patches it has applied are undone in the copy.

    Raises:
        RoundsmithError: the model holds objects that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = placeholder(parameter)
    for module in model.modules():
        for name in (*MODULE_STATE, *MODEL_STATE):
            value = module.__dict__.get(name)
            if not isinstance(value, ATOMIC):
                memo[id(value)] = None
    config = getattr(model, "model_config", None)
    for shared in (config, getattr(config, "latent_format", None)):
        if shared is not None:
            memo[id(shared)] = shared
    try:
        clone = copy.deepcopy(model, memo)
        for key, value in patcher.object_patches_backup.items():
            comfy.utils.set_attr(clone, key, copy.deepcopy(value, memo))
    except RoundsmithError:
        raise
    except Exception as error:
        raise RoundsmithError(
            f"{type(model).__name__} cannot be copied ({error}). Another node may have changed its "
            "modules: quantize the model before that node, or use Quantize File on its file."
        ) from error
    for module in clone.modules():
        _forget(module, MODULE_STATE)
        comfy.model_patcher.wipe_lowvram_weight(module)
    _forget(clone, MODEL_STATE)
    if "current_patcher" in model.__dict__:
        clone.current_patcher = None
    clone.device = patcher.offload_device
    return clone


def placeholder(tensor: Tensor) -> nn.Parameter:
    """A parameter that holds a place: right shape and dtype, no memory."""
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False)


def fill_parameters(clone: nn.Module, value: Callable[[str], Tensor]) -> None:
    """Give every placeholder left in ``clone`` its value; tied parameters stay tied.

    Args:
        clone: a tree from :func:`clone_structure`.
        value: the tensor for a parameter's full name.
    """
    filled: dict[int, nn.Parameter] = {}
    for prefix, module in clone.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in filled:
                full = f"{prefix}.{name}" if prefix else name
                tensor = nn.Parameter(value(full), requires_grad=False)
                filled[id(parameter)] = tensor
            module._parameters[name] = filled[id(parameter)]


def copy_model(model: nn.Module, patcher: Any, original: Callable[[str], Tensor]) -> nn.Module:
    """A copy of ``model`` with its own copy of every weight, as ``original(name)`` gives it."""
    clone = clone_structure(model, patcher)
    fill_parameters(clone, lambda name: original(name).detach().clone())
    return clone


def _forget(module: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        if name in module.__dict__:
            delattr(module, name)
            if name in ("weight_function", "bias_function"):
                setattr(module, name, [])
