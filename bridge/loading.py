"""Load checkpoints in any mix of formats, legacy ones and unquantized ones included.

A file ComfyUI reads by itself takes ComfyUI's own path, so that it behaves as with the stock
loaders. Any other is loaded through :func:`~.operations.custom_operations`. Tensors are always read
by ``comfy.utils.load_torch_file``, which knows about memory mapping and dynamic VRAM.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.model_management as mm
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..checkpoints import Checkpoint, encode_conf, read_layers
from ..checkpoints.quantization import HEADER_KEY
from ..errors import CheckpointError
from ..layouts import formats, get_format
from .operations import (
    MIXED,
    Kind,
    core_knows,
    custom_operations,
    kind_of,
    layer_parts,
    needs_custom_operations,
    repair_layer,
    stand_in,
)

FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}


@dataclass
class StateDict:
    """A checkpoint's tensors, ready to load: every quantized layer in its specified form."""

    path: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    formats: dict[str, str] = field(default_factory=dict)
    """Quantized layers, and the format of each."""
    kinds: dict[str, Kind] = field(default_factory=dict)
    """The same with the variant."""
    decoded: dict[str, str] = field(default_factory=dict)
    """Those of them that ask for full-precision products."""

    def under(self, *prefixes: str) -> set[Kind]:
        """What the layers are whose names start with one of the prefixes."""
        return {kind for name, kind in self.kinds.items() if name.startswith(prefixes)}

    def read(self, name: str) -> Tensor:
        """One tensor (for ``read_layers``)."""
        return self.tensors[name]


def read_state_dict(path: str) -> StateDict:
    """Read a checkpoint and bring its quantized layers to the form ComfyUI and our formats expect.

    Raises :class:`~roundsmith.errors.CheckpointError` for files that are damaged.
    """
    if Path(path).suffix.lower() in (".safetensors", ".sft"):
        Checkpoint.open(path).close()  # a damaged file is reported in our words
    tensors, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    state = StateDict(path, dict(tensors), dict(metadata or {}))
    _convert_legacy(state)
    _convert_foreign(state)
    found = read_layers(state)
    for note in found.notes[:20]:
        logging.info("%s: %s", Path(path).name, note)
    state.metadata.pop(HEADER_KEY, None)
    for layer, conf in found.layers.items():
        name, conf = repair_layer(state.tensors, f"{layer}.", conf)
        state.formats[layer] = name
        state.kinds[layer] = kind_of(name, state.tensors, f"{layer}.", conf)
        if name in formats() and not core_knows(*state.kinds[layer]):
            _show_shape(state.tensors, layer, name, conf)
        if conf.get("full_precision_matrix_mult") and name in formats():
            state.decoded[layer] = name
    return state


def _convert_foreign(state: StateDict) -> None:
    """Layers as other libraries keep them to comfy_quant."""
    for fmt in formats().values():
        for layer, names in fmt.foreign(state.tensors).items():
            conf = fmt.foreign_conf(names, state.read)
            parts = {suffix: state.tensors.pop(name) for suffix, name in names.items()}
            for suffix, tensor in fmt.normalise(parts, conf).items():
                state.tensors[f"{layer}.{suffix}"] = tensor
            state.tensors[f"{layer}.comfy_quant"] = encode_conf(conf)


def _show_shape(tensors: dict[str, Tensor], layer: str, name: str, conf: dict[str, Any]) -> None:
    """Let a weight of packed codes have its logical shape, by which ComfyUI knows the model."""
    key, fmt = f"{layer}.weight", get_format(name)
    shape = fmt.orig_shape(layer_parts(tensors, f"{layer}."), conf)
    if tuple(tensors[key].shape) != shape:
        tensors[key] = stand_in(tensors[key], shape)


def _convert_legacy(state: StateDict) -> None:
    """fp8_scaled to comfy_quant, by ComfyUI's own conversion; then what that overlooks."""
    for marker in [k for k in state.tensors if k == "scaled_fp8" or k.endswith(".scaled_fp8")]:
        prefix = marker.removesuffix("scaled_fp8")
        before = {k for k in state.tensors if k.endswith(".comfy_quant")}
        converted, _ = comfy.utils.convert_old_quants(state.tensors, prefix, metadata={})
        state.tensors = dict(converted)
        state.tensors.pop(marker, None)
        for key in [k for k in state.tensors if k.endswith(".comfy_quant") and k not in before]:
            if key.startswith(prefix):
                _fix_legacy_layer(state.tensors, key.removesuffix(".comfy_quant"))


def _fix_legacy_layer(tensors: dict[str, Tensor], layer: str) -> None:
    """High-precision layers may carry dummy scales, and an FP8 layer may be E5M2."""
    weight = tensors.get(f"{layer}.weight")
    conf = tensors[f"{layer}.comfy_quant"]
    if weight is None or weight.dtype not in FP8:
        for suffix in ("comfy_quant", "weight_scale", "input_scale"):
            tensors.pop(f"{layer}.{suffix}", None)
    elif weight.dtype is torch.float8_e5m2:
        text = bytes(conf.tolist()).replace(b"float8_e4m3fn", b"float8_e5m2")
        tensors[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)


def load_diffusion_model(path: str, disable_dynamic: bool = False) -> Any:
    """Load a diffusion model file into a ModelPatcher."""
    state = read_state_dict(path)
    options = {}
    if needs_custom_operations(state.kinds.values(), state.decoded.values()):
        prefix = comfy.model_detection.unet_prefix_from_state_dict(state.tensors)
        options["custom_operations"] = _diffusion_operations(state, prefix)
    tensors = dict(state.tensors)
    model = comfy.sd.load_diffusion_model_state_dict(
        tensors, model_options=options, metadata=state.metadata, disable_dynamic=disable_dynamic
    )
    if model is None:
        raise CheckpointError(_unknown_model(state, "a diffusion model"))
    model.cached_patcher_init = (load_diffusion_model, (path,))
    return model


def _diffusion_operations(state: StateDict, prefix: str) -> type:
    device = mm.get_torch_device()
    config = comfy.model_detection.model_config_from_unet(
        state.tensors, prefix, metadata=state.metadata
    )
    if config is None:
        return custom_operations(mm.unet_manual_cast(None, device), device)
    dtypes = config.supported_inference_dtypes
    return custom_operations(mm.unet_manual_cast(None, device, dtypes), device)


def load_clip(
    paths: list[str],
    clip_type: str,
    embedding_directory: list[str] | None = None,
    device: str = "default",
    disable_dynamic: bool = False,
) -> Any:
    """Load one to four text encoder files into a CLIP.

    Args:
        paths: the files, in the order the model type wants them.
        clip_type: name of a ``comfy.sd.CLIPType``, in any case.
        embedding_directory: where textual-inversion embeddings are looked up.
        device: ``"cpu"`` keeps it on the CPU.
        disable_dynamic: no dynamic VRAM (ComfyUI asks for it when it clones).
    """
    states = [read_state_dict(path) for path in paths]
    options: dict[str, Any] = {}
    if device == "cpu":
        options["load_device"] = options["offload_device"] = torch.device("cpu")
    found = {kind for state in states for kind in state.kinds.values()}
    options.update(_text_encoder_options(found, states, options.get("load_device")))
    kind = getattr(comfy.sd.CLIPType, clip_type.upper(), comfy.sd.CLIPType.STABLE_DIFFUSION)
    clip = comfy.sd.load_text_encoder_state_dicts(
        [state.tensors for state in states],
        embedding_directory=embedding_directory,
        clip_type=kind,
        model_options=options,
        disable_dynamic=disable_dynamic,
    )
    init = (paths, clip_type, embedding_directory, device)
    clip.patcher.cached_patcher_init = (_load_clip_patcher, init)
    return clip


def _load_clip_patcher(*args: Any, disable_dynamic: bool = False) -> Any:
    return load_clip(*args, disable_dynamic=disable_dynamic).patcher


def _text_encoder_options(
    found: set[Kind], states: list[StateDict], device: torch.device | None
) -> dict[str, Any]:
    """Model options that make text encoders read these formats; none where ComfyUI finds them."""
    if not found:
        return {}
    if needs_custom_operations(found):
        device = device or mm.text_encoder_device()
        dtype = mm.text_encoder_dtype(device)
        return {"custom_operations": custom_operations(dtype, device, True, dtype_per_layer=True)}
    if all(_core_detects(state) for state in states if state.formats):
        return {}
    return {"quantization_metadata": dict(MIXED)}


def _core_detects(state: StateDict) -> bool:
    """Whether ComfyUI notices by itself that a text encoder is quantized (CLIP-L/G it does not)."""
    for detect in ("t5xxl_detect", "llama_detect"):
        probe = getattr(comfy.sd, detect, None)
        found: Mapping[str, Any] = probe([state.tensors]) if probe else {}
        if any(key.endswith("quantization_metadata") for key in found):
            return True
    return False


def load_checkpoint(
    path: str,
    embedding_directory: list[str] | None = None,
    disable_dynamic: bool = False,
    parts: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Any, Any, Any]:
    """Load a whole checkpoint: (ModelPatcher, CLIP, VAE). ``parts`` says which of them."""
    state = read_state_dict(path)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state.tensors)
    options, te_options = {}, {}
    model_formats = state.under(prefix)
    te_formats = {
        kind for name, kind in state.kinds.items() if not prefix or not name.startswith(prefix)
    }
    decoded = {f for name, f in state.decoded.items() if name.startswith(prefix)}
    if needs_custom_operations(model_formats, decoded):
        options["custom_operations"] = _diffusion_operations(state, prefix)
    if prefix and te_formats:
        te_options = _text_encoder_options(te_formats, [state], None)
    loaded = comfy.sd.load_state_dict_guess_config(
        dict(state.tensors),
        output_model=parts[0],
        output_clip=parts[1],
        output_vae=parts[2],
        embedding_directory=embedding_directory,
        model_options=options,
        te_model_options=te_options,
        metadata=state.metadata,
        disable_dynamic=disable_dynamic,
    )
    if loaded is None:
        raise CheckpointError(_unknown_model(state, "a checkpoint"))
    model, clip, vae = loaded[:3]
    if model is not None:
        model.cached_patcher_init = (_load_part, (path, embedding_directory, 0))
    for index, part in ((1, clip), (2, vae)):
        if part is not None and getattr(part, "patcher", None) is not None:
            part.patcher.cached_patcher_init = (_load_part, (path, embedding_directory, index))
    return model, clip, vae


def _load_part(path: str, embeddings: Any, index: int, disable_dynamic: bool = False) -> Any:
    parts = (index == 0, index == 1, index == 2)
    loaded = load_checkpoint(path, embeddings, disable_dynamic, parts)[index]
    return loaded if index == 0 else loaded.patcher


def _unknown_model(state: StateDict, what: str) -> str:
    hint = getattr(comfy.sd, "model_detection_error_hint", lambda *_: "")(state.path, state.tensors)
    return f"{state.path}: ComfyUI does not recognise {what} in it. {hint}".strip()
