"""Write a loaded MODEL, CLIP or checkpoint to a file, quantized layers as the codes they are.

One tensor at a time goes from the model to the file; LoRAs on the model are baked in as they run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_sampling
import comfy.utils
import torch
from comfy.cli_args import args
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..checkpoints import CheckpointWriter, decode_conf, layers_metadata
from ..checkpoints.quantization import HEADER_KEY
from ..converters import Progress, Recipe
from ..converters.recipe import METADATA_KEY
from ..errors import RoundsmithError
from .networks import DIFFUSION, encoder_prefixes
from .progress import NodeProgress
from .stored import file_tensors, original_tensor, patched_as_loaded


@dataclass(frozen=True)
class Stored:
    """A tensor to be written: what the header says of it, and how to get it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def plain(tensor: Tensor) -> Stored:
    """A tensor that is there already."""
    return Stored(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def collect(patcher: Any, prefix: str) -> dict[str, Stored]:
    """Every file tensor of the part of a patcher's model under ``prefix``, by name without it."""
    module = comfy.utils.get_attr(patcher.model, prefix[:-1]) if prefix else patcher.model
    found: dict[str, Stored] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        _collect_module(patcher, part, prefix, f"{name}." if name else "", found)
    return found


def _collect_module(
    patcher: Any, module: nn.Module, prefix: str, dot: str, found: dict[str, Stored]
) -> None:
    parameters = {n: p for n, p in module._parameters.items() if p is not None}
    weight_key = f"{prefix}{dot}weight"
    if "weight" in parameters:
        weight = original_tensor(patcher, weight_key)
        if isinstance(weight, QuantizedTensor):
            form = _form(patcher, module, dot[:-1])
            reader = _LayerReader(patcher, module, weight_key, form)
            stored = file_tensors(module, weight, form)
            if "comfy_quant" in stored:  # patches leave it as is
                found[dot + "comfy_quant"] = plain(stored.pop("comfy_quant"))
            for suffix, tensor in stored.items():
                found[dot + suffix] = Stored(
                    tensor.dtype, tuple(tensor.shape), lambda s=suffix, r=reader: r.read(s)
                )
                parameters.pop(suffix, None)
    for name in parameters:
        tensor = original_tensor(patcher, f"{prefix}{dot}{name}")
        found[dot + name] = Stored(
            tensor.dtype,
            tuple(tensor.shape),
            lambda key=f"{prefix}{dot}{name}": patched_as_loaded(patcher, key),
        )
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            found[dot + name] = plain(original_tensor(patcher, f"{prefix}{dot}{name}"))


def _form(patcher: Any, module: nn.Module, layer: str) -> str | None:
    """The form a layer's file is to have: what it was read from, or its recipe asked for."""
    conf = getattr(module, "roundsmith_conf", None) or {}
    text = getattr(patcher.model, "roundsmith_recipe", None)
    if "form" in conf or text is None:
        return conf.get("form")
    recipe = Recipe.from_json(text)
    rule = next((rule for rule in recipe.rules if rule.matches(layer)), None)
    options = recipe if rule is None or rule.skip else rule.over(recipe)
    return options.form if options.format == conf.get("format") else None


class _LayerReader:
    """Tensors of one quantized layer, patches baked; computed once, freed after the last."""

    def __init__(self, patcher: Any, module: nn.Module, key: str, form: str | None) -> None:
        self._patcher, self._module, self._key, self._form = patcher, module, key, form
        self._tensors: dict[str, Tensor] = {}

    def read(self, suffix: str) -> Tensor:
        if not self._tensors:
            weight = patched_as_loaded(self._patcher, self._key)
            self._tensors = file_tensors(self._module, weight, self._form)
            self._tensors.pop("comfy_quant", None)
        return self._tensors.pop(suffix)


def write(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> int:
    """Write ``tensors`` with the header their JSON calls for. Returns the bytes of the file."""
    layers = {
        name.removesuffix(".comfy_quant"): decode_conf(stored.read())
        for name, stored in tensors.items()
        if name.endswith(".comfy_quant") and not name.startswith(".")
    }
    metadata = dict(metadata)
    if layers:
        metadata[HEADER_KEY] = layers_metadata(layers)
    entries = {name: (stored.dtype, stored.shape) for name, stored in tensors.items()}
    total, done = sum(stored.nbytes for stored in tensors.values()), 0
    progress = NodeProgress("saving")
    with CheckpointWriter(path, entries, metadata) as writer:
        for index, (name, stored) in enumerate(tensors.items(), 1):
            progress(Progress(name, index, len(tensors), done, total))
            tensor = stored.read().detach().to("cpu", stored.dtype).contiguous()
            writer.write(name, tensor)
            done += stored.nbytes
    return path.stat().st_size


def workflow_metadata(prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """The workflow, as ComfyUI puts it into the files it saves; empty where the user forbids it."""
    if args.disable_metadata:
        return {}
    metadata = {"format": "pt"}
    if prompt is not None:
        metadata["prompt"] = json.dumps(prompt)
    for key, value in (extra_pnginfo or {}).items():
        metadata[key] = json.dumps(value)
    return metadata


def recipe_metadata(patcher: Any) -> dict[str, str]:
    """How the model was quantized, where it was here."""
    recipe = getattr(patcher.model, "roundsmith_recipe", None)
    return {METADATA_KEY: recipe} if recipe else {}


def model_tensors(patcher: Any) -> dict[str, Stored]:
    """Tensors of a MODEL as a file for ``models/diffusion_models`` holds them."""
    return collect(patcher, DIFFUSION)


def clip_tensors(clip: Any) -> dict[str, dict[str, Stored]]:
    """Tensors of a CLIP: one file for each text encoder, named after it."""
    everything = collect(clip.patcher, "")
    extra = {name: plain(t) for name, t in clip.tokenizer.state_dict().items()}
    files: dict[str, dict[str, Stored]] = {}
    for prefix in encoder_prefixes(clip.cond_stage_model):
        encoder = prefix.removesuffix("transformer.")
        names = [name for name in everything if name.startswith(encoder)]
        files[encoder[:-1] or "text_encoder"] = {
            name.removeprefix(prefix).removeprefix(encoder): everything.pop(name) for name in names
        }
    if not files:
        files["text_encoder"] = {}
    first = next(iter(files))
    files[first].update(everything)
    files[first].update({name: value for name, value in extra.items() if name not in files[first]})
    return files


def checkpoint_tensors(model: Any, clip: Any | None, vae: Any | None) -> dict[str, Stored]:
    """Tensors of a whole checkpoint, named by the model's own configuration."""
    config = model.model.model_config
    tensors = dict(config.process_unet_state_dict_for_saving(model_tensors(model)))
    if clip is not None:
        state = collect(clip.patcher, "")
        state.update({name: plain(t) for name, t in clip.tokenizer.state_dict().items()})
        tensors.update(_rename_clip(config, state))
    if vae is not None:
        state = config.process_vae_state_dict_for_saving(dict(vae.get_sd()))
        tensors.update({name: plain(tensor) for name, tensor in state.items()})
    tensors.update({name: plain(tensor) for name, tensor in _sampling_keys(model).items()})
    return tensors


def _rename_clip(config: Any, state: dict[str, Stored]) -> dict[str, Stored]:
    """Names of text encoder tensors in a checkpoint. Some families also join tensors on the way."""
    quantized = any(name.endswith(".comfy_quant") for name in state)
    try:
        return dict(config.process_clip_state_dict_for_saving(dict(state)))
    except (TypeError, AttributeError, RuntimeError) as error:
        if quantized:
            raise RoundsmithError(
                "checkpoints of this family store their text encoder with joined tensors, which a "
                "quantized one cannot be: save it with Save Quantized CLIP, or connect the "
                "unquantized CLIP here"
            ) from error
    tensors = config.process_clip_state_dict_for_saving({n: s.read() for n, s in state.items()})
    return {name: plain(tensor) for name, tensor in tensors.items()}


def _sampling_keys(model: Any) -> dict[str, Tensor]:
    """Marker tensors by which ComfyUI recognises how the model was trained."""
    sampling = model.get_model_object("model_sampling")
    keys: dict[str, Tensor] = {}
    if model.model.model_type == comfy.model_base.ModelType.V_PREDICTION:
        keys["v_pred"] = torch.tensor([])
        if getattr(sampling, "zsnr", False):
            keys["ztsnr"] = torch.tensor([])
    continuous = isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM)
    if continuous and isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        keys["edm_vpred.sigma_max"] = torch.tensor(sampling.sigma_max).float()
        keys["edm_vpred.sigma_min"] = torch.tensor(sampling.sigma_min).float()
    return keys
