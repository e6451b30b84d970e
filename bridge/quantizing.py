"""Quantize a loaded MODEL or CLIP into one that runs at once, with its LoRAs baked in.

The engine reads the patched weights, its output becomes the layers of a copy of the model, and the
copy gets a patcher with everything the original's had besides the patches that are now baked. The
original is not changed.
"""

from __future__ import annotations

import logging
import re
import types
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..converters import MemorySink, Recipe, Report, Rule, convert
from ..converters.calibration import Calibration
from ..converters.resume import Journal
from ..errors import Cancelled, RoundsmithError
from ..layouts import get_format
from .cloning import clone_structure, copy_model, fill_parameters
from .memory import make_room
from .naming import name_of
from .networks import DIFFUSION, encoder_prefixes
from .operations import custom_operations
from .progress import NodeProgress, cancelled
from .self_calibration import self_calibrate_clip, self_calibrate_model
from .sources import PatchedWeights
from .statistics import ModelStatistics, finished, statistics_for
from .stored import original_tensor
from .timing import measured_rounding


@dataclass
class Part:
    """A quantized part of a model: its prefix, the engine's output, its report."""

    prefix: str
    tensors: dict[str, Tensor]
    report: Report


def quantize_model(
    patcher: Any,
    recipe: Recipe,
    calibration: Calibration | None = None,
    clip: Any = None,
) -> tuple[Any, Report]:
    """Quantize a MODEL's diffusion network.

    Args:
        patcher: the model, with its LoRAs; it is not changed.
        recipe: the settings.
        calibration: statistics of the layers' inputs. Without them, and where the recipe can use
            them, the model calibrates itself first.
        clip: a CLIP to encode prompts with while the model calibrates itself.

    Returns:
        The new ModelPatcher and the report.
    """
    with measured_rounding(recipe, calibration, patcher):
        statistics = statistics_for(
            patcher, recipe, calibration, lambda: self_calibrate_model(patcher, clip)
        )
        dtype = patcher.model.get_dtype_inference()
        operations = custom_operations(dtype, patcher.load_device)
        new, parts = _quantize(patcher, [DIFFUSION], recipe, operations, dtype, statistics)
    new.model.manual_cast_dtype = dtype
    return new, parts[0].report


def quantize_clip(
    clip: Any, recipe: Recipe, calibration: Calibration | None = None
) -> tuple[Any, list[tuple[str, Report]]]:
    """Quantize every text encoder of a CLIP.

    Args:
        clip: the text encoders, with their LoRAs; they are not changed.
        recipe: the settings.
        calibration: statistics of the layers' inputs. Without them, and where the recipe can use
            them, the encoders calibrate themselves on built-in text first.

    Returns:
        The new CLIP and a report for each encoder.
    """
    encoders = encoder_prefixes(clip.cond_stage_model)
    if not encoders:
        raise RoundsmithError("this CLIP holds no text encoder that can be quantized")
    device = clip.patcher.load_device
    dtype = mm.text_encoder_dtype(device)
    operations = custom_operations(dtype, device, full_precision=True, dtype_per_layer=True)
    with measured_rounding(recipe, calibration, clip.patcher):
        statistics = statistics_for(
            clip.patcher, recipe, calibration, lambda: self_calibrate_clip(clip)
        )
        patcher, parts = _quantize(clip.patcher, encoders, recipe, operations, None, statistics)
    new = clip.clone()
    new.patcher = patcher
    new.cond_stage_model = patcher.model
    return new, [(part.prefix.split(".")[0], part.report) for part in parts]


def _quantize(
    patcher: Any,
    prefixes: list[str],
    recipe: Recipe,
    operations: type,
    dtype: torch.dtype | None,
    statistics: ModelStatistics,
) -> tuple[Any, list[Part]]:
    make_room(recipe, (tuple(parameter.shape) for parameter in patcher.model.parameters()))
    with patcher.use_ejected():
        sources = {prefix: PatchedWeights(patcher, prefix) for prefix in prefixes}
        kept = Path(folder_paths.get_temp_directory()) / "roundsmith-layers"
        journal = Journal(kept, shared=True)
        parts = [
            _convert(source, recipe, statistics, journal, dtype is None)
            for source in sources.values()
        ]
        clone = clone_structure(patcher.model, patcher)
        for part in parts:
            _put_layers(clone, part, patcher, operations, dtype)
        values = {p.prefix + name: tensor for p in parts for name, tensor in p.tensors.items()}

        def value(name: str) -> Tensor:
            tensor = values.get(name)
            original = original_tensor(patcher, name)
            if tensor is None:
                return original.detach().to("cpu", copy=True)
            return tensor.to(original.dtype)

        fill_parameters(clone, value)
        clone.eval()
        baked = {key for source in sources.values() for key in source.baked}
        new, notes = _new_patcher(patcher, clone, baked)
    new.model.roundsmith_recipe = recipe.to_json()
    new.model.roundsmith_name = name_of(patcher)
    for note in notes:
        logging.warning("Roundsmith: %s", note)
    finished(patcher)
    journal.clear()
    first = parts[0].report
    told = (statistics.note,) if statistics.note else ()
    parts[0].report = replace(first, warnings=(*first.warnings, *told, *notes))
    return new, parts


def _convert(
    source: PatchedWeights,
    recipe: Recipe,
    statistics: ModelStatistics,
    journal: Journal,
    decodes: bool,
) -> Part:
    keep = tuple(Rule(match=f"^{re.escape(name)}$", skip=True) for name in source.not_linear)
    rules = tuple(map(_described, recipe.rules))
    fallback = None if recipe.fallback is None else _described(recipe.fallback)
    restricted = _described(recipe.in_memory).model_copy(
        update={"rules": (*keep, *rules), "fallback": fallback}
    )
    sinks: list[MemorySink] = []

    def open_sink(entries: Any, metadata: Any) -> MemorySink:
        sinks[:] = [MemorySink(entries, metadata)]
        return sinks[0]

    try:
        calibration = statistics.under(source.prefix)
        report = convert(
            *(source, open_sink, restricted, NodeProgress("quantizing"), cancelled),
            *(calibration, journal, decodes),
        )
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise
    finally:
        source.close()
    layers = tuple(
        replace(x, reason="not a linear layer") if x.name in source.not_linear else x
        for x in report.layers
    )
    report = replace(report, layers=layers, recipe=recipe.to_json())
    return Part(source.prefix, sinks[0].tensors, report)


def _described(options: Any) -> Any:
    """``options`` in a form with JSON, which a layer in memory is made from."""
    fmt = None if options.form is None else get_format(options.format)
    plain = fmt is None or fmt.has_json({"form": options.form})
    return options if plain else options.model_copy(update={"form": None})


def _put_layers(
    clone: nn.Module, part: Part, patcher: Any, operations: type, dtype: torch.dtype | None
) -> None:
    """Replace every layer that is or was quantized by one of ours with the engine's output."""
    tensors = part.tensors
    suffix = ".weight"
    for layer in [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]:
        full = part.prefix + layer
        original = original_tensor(patcher, f"{full}.weight")
        if f"{layer}.comfy_quant" not in tensors and not isinstance(original, QuantizedTensor):
            continue
        names = [n for n in tensors if n.rpartition(".")[0] == layer]
        state = {n.rpartition(".")[2]: tensors.pop(n) for n in names}
        old = comfy.utils.get_attr(clone, full)
        linear = operations.Linear(
            old.in_features,
            old.out_features,
            bias="bias" in state,
            device="cpu",
            dtype=dtype or _compute_dtype(original),
        )
        linear.load_state_dict(state)
        if linear.bias is not None:
            linear.bias_comfy_model_dtype = linear.bias.dtype
        parent, _, own = full.rpartition(".")
        comfy.utils.get_attr(clone, parent)._modules[own] = linear


def _compute_dtype(weight: Tensor) -> torch.dtype:
    floats = (torch.float32, torch.bfloat16, torch.float16)
    return weight.dtype if weight.dtype in floats else torch.bfloat16


def _new_patcher(patcher: Any, model: nn.Module, baked: set[str]) -> tuple[Any, list[str]]:
    """A patcher for ``model`` with all the original's has but the baked patches; and warnings."""
    fresh = type(patcher)(model, patcher.load_device, patcher.offload_device)
    new = patcher.clone(model_override=fresh.get_clone_model_override())
    new.patches = {key: value for key, value in new.patches.items() if key not in baked}
    new.patches_uuid = uuid.uuid4()
    new.clone_base_uuid = uuid.uuid4()
    new.parent = None
    new.size = 0
    new.is_injected = False
    new.hook_backup = {}
    new.cached_hook_patches = {}
    notes = _rebind_object_patches(new, patcher.model)
    if new.injections:
        notes.append(
            f"dropped {', '.join(new.injections)}: it is bound to the unquantized model "
            "(a LoRA in bypass mode?). Load such LoRAs with a normal loader before this node."
        )
        new.injections = {}
    new.remove_additional_models("multigpu")
    new.cached_patcher_init = (
        _respawn,
        (model, new.backup, patcher.load_device, patcher.offload_device),
    )
    return new, notes


def _rebind_object_patches(new: Any, old_model: nn.Module) -> list[str]:
    """Bind methods patched onto the old network to the new one; drop what holds the old network."""
    notes = []
    names = {id(module): name for name, module in old_model.named_modules()}
    for key, value in list(new.object_patches.items()):
        owner = getattr(value, "__self__", None)
        if isinstance(value, types.MethodType) and id(owner) in names:
            module = comfy.utils.get_attr(new.model, names[id(owner)])
            new.object_patches[key] = types.MethodType(value.__func__, module)
        elif key.startswith("diffusion_model") and isinstance(value, nn.Module):
            del new.object_patches[key]
            notes.append(f"dropped the patch of {key}: it holds the unquantized network")
    return notes


@dataclass
class _Unpatched:
    """What :func:`~.cloning.copy_model` needs of a patcher."""

    offload_device: torch.device
    object_patches_backup: dict[str, Any]


def _respawn(
    model: nn.Module,
    backup: dict[str, Any],
    load_device: torch.device,
    offload_device: torch.device,
    disable_dynamic: bool = False,
) -> Any:
    """An independent copy of a quantized model; ComfyUI asks for it to clone across devices."""

    def original(name: str) -> Tensor:
        return backup[name].weight if name in backup else comfy.utils.get_attr(model, name)

    copied = copy_model(model, _Unpatched(offload_device, {}), original)
    core = comfy.model_patcher
    kind: Callable[..., Any] = core.ModelPatcher if disable_dynamic else core.CoreModelPatcher
    return kind(copied, load_device=load_device, offload_device=offload_device)
