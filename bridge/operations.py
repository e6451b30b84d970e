"""ComfyUI operations that also run formats ComfyUI's own loader does not know.

ComfyUI reads a closed list of formats. ``custom_operations`` extends its mixed-precision
operations: a layer in a format it knows takes its own path, every other layer is built from the
same file tensors by the format's reader. What ComfyUI knows is probed by loading a tiny layer, not
read off a version.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, MutableMapping
from functools import cache
from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor

from ..checkpoints import decode_conf, encode_conf
from ..layouts import formats, get_format, identify

_PACKED = "roundsmith_packed"
Kind = tuple[str, str | None]
"""A format's id, and the variant where variants are stored unlike."""
MIXED = {"mixed_ops": True}


@cache
def core_knows(format_id: str, variant: str | None = None) -> bool:
    """Whether the running ComfyUI loads layers of this format, in this variant, by itself."""
    fmt = formats().get(format_id)
    if fmt is None or format_id not in QUANT_ALGOS:
        return _is_core_only(format_id)
    if variant is not None and variant not in fmt.variants:
        return False
    spec = fmt.bind(variant=variant)
    state = {
        suffix: torch.zeros(shape, dtype=dtype)
        for suffix, (dtype, shape) in fmt.storage(spec, (256, 256)).items()
    }
    state["comfy_quant"] = encode_conf(fmt.conf(spec, (256, 256)))
    layer = comfy.ops.mixed_precision_ops(dict(MIXED), torch.float32).Linear(256, 256, bias=False)
    try:
        layer.load_state_dict(state, strict=False)
        weight = getattr(layer, "weight", None)
        return isinstance(weight, QuantizedTensor) and weight.dequantize().shape == (256, 256)
    except Exception:  # whatever it raises, it does not load the format
        return False


def kind_of(
    format_id: str, state: Mapping[str, Tensor], prefix: str, conf: Mapping[str, Any]
) -> Kind:
    """What a layer that :func:`repair_layer` has seen is. ``prefix`` as there."""
    fmt = formats().get(format_id)
    if fmt is None:
        return format_id, None
    parts = layer_parts(state, prefix)
    return format_id, fmt.variant_of({s: tuple(t.shape) for s, t in parts.items()}, conf)


def register_formats() -> None:
    """Name our layouts to ComfyUI. Harmless when done twice, and when another copy did it."""
    for fmt in formats().values():
        if fmt.id in QUANT_ALGOS:
            continue
        QUANT_ALGOS[fmt.id] = {
            "storage_t": fmt.weight_dtype,
            "parameters": {"weight_scale", "input_scale"},
            "comfy_tensor_layout": fmt.layout,
            "quantize_input": False,
        }


def emulated_formats(device: torch.device | None) -> set[str]:
    """Formats the device has no product for: ComfyUI decodes them, as in its own loader."""
    emulated: set[str] = set()
    for names, supported in (
        (("nvfp4",), "supports_nvfp4_compute"),
        (("mxfp8",), "supports_mxfp8_compute"),
        (("float8_e4m3fn", "float8_e5m2"), "supports_fp8_compute"),
    ):
        probe = getattr(mm, supported, None)
        if probe is None or not probe(device):
            emulated.update(names)
    return emulated


def layer_parts(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one quantized layer, by suffix. ``prefix`` ends with a dot."""
    suffixes = dict.fromkeys(s for fmt in formats().values() for s in fmt.part_names)
    return {s: state[prefix + s] for s in suffixes if prefix + s in state}


def stand_in(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A weight of its logical ``shape``, without memory of its own, that carries packed codes.

    ComfyUI recognises models by the shapes of their weights, which packed codes do not have.
    """
    tensor = packed.new_empty(1).expand(shape)
    setattr(tensor, _PACKED, packed)
    return tensor


def stored_parts(format_id: str, weight: QuantizedTensor) -> dict[str, Tensor]:
    """The file tensors of a running weight, by suffix, whoever's format it is."""
    fmt = formats().get(format_id)
    if fmt is not None:
        return fmt.parts_of(weight)
    return {f"weight{suffix}": tensor for suffix, tensor in weight.state_dict().items()}


def repair_layer(
    state: MutableMapping[str, Tensor], prefix: str, conf: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Bring a layer of ``state`` to the form its format is specified in, in place.

    ``prefix`` is its name with a dot, or empty where ``state`` is its own. Returns the id of
    the format its tensors are of, and its JSON naming that format. Layers only ComfyUI understands
    (banks of experts, formats of its own) are left as they are. Raises
    :class:`~roundsmith.errors.FormatError` where JSON and tensors contradict each other.
    """
    parts = layer_parts(state, prefix)
    name = str(conf.get("format"))
    if _is_core_only(name) or (parts["weight"].ndim != 2 and "num_experts" in conf):
        state[f"{prefix}comfy_quant"] = encode_conf(conf)
        return name, conf
    shapes = {suffix: tuple(tensor.shape) for suffix, tensor in parts.items()}
    fmt = identify(conf, shapes, parts["weight"].dtype, prefix[:-1])
    for suffix, tensor in fmt.normalise(parts, conf).items():
        state[f"{prefix}{suffix}"] = tensor
    if name != fmt.id:
        conf = {**conf, "format": fmt.id}
    state[f"{prefix}comfy_quant"] = encode_conf(conf)
    return fmt.id, conf


def _is_core_only(name: str) -> bool:
    """A format ComfyUI has and Roundsmith has not."""
    ours = any(name == fmt.id or name in fmt.aliases for fmt in formats().values())
    return not ours and name in QUANT_ALGOS


def needs_custom_operations(kinds: Iterable[Kind], decoded: Iterable[str] = ()) -> bool:
    """Whether a model is beyond the running ComfyUI's own loader.

    Args:
        kinds: what its layers are.
        decoded: formats of layers that ask for ``full_precision_matrix_mult``. ComfyUI leaves its
            INT8 weights as they are there, whose product rounds the inputs all the same.
    """
    ignored = any(not get_format(name).core_quantizes_input for name in set(decoded))
    return ignored or any(not core_knows(*kind) for kind in set(kinds))


def custom_operations(
    compute_dtype: torch.dtype,
    device: torch.device | None = None,
    full_precision: bool = False,
    dtype_per_layer: bool = False,
) -> type:
    """Operations for models in any mix of formats.

    Args:
        compute_dtype: dtype of activations, and of weights that are not quantized.
        device: where the model will run; decides which of ComfyUI's formats it decodes first.
        full_precision: decode every weight before its product, as ComfyUI does for text encoders.
        dtype_per_layer: a layer's own dtype, where the model asks for one, wins over
            ``compute_dtype`` (text encoders mix dtypes).
    """
    register_formats()
    base = comfy.ops.mixed_precision_ops(
        dict(MIXED), compute_dtype, full_precision, emulated_formats(device)
    )

    class Linear(base.Linear):
        """ComfyUI's mixed-precision linear layer, for every format."""

        roundsmith_conf: dict[str, Any] | None = None

        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
            if dtype_per_layer and dtype in (torch.float16, torch.bfloat16, torch.float32):
                self.factory_kwargs["dtype"] = dtype
                if self.bias is not None:
                    self.bias = torch.nn.Parameter(
                        torch.empty(out_features, **self.factory_kwargs), requires_grad=False
                    )

        def _load_from_state_dict(self, state_dict, prefix, *args):
            encoded = state_dict.get(f"{prefix}comfy_quant")
            if encoded is None or f"{prefix}weight" not in state_dict:
                return super()._load_from_state_dict(state_dict, prefix, *args)
            weight = state_dict[f"{prefix}weight"]
            state_dict[f"{prefix}weight"] = getattr(weight, _PACKED, weight)
            conf = decode_conf(encoded)
            name, conf = repair_layer(state_dict, prefix, conf)
            self.roundsmith_conf = conf
            if core_knows(*kind_of(name, state_dict, prefix, conf)):
                return super()._load_from_state_dict(state_dict, prefix, *args)
            return self._load_ours(get_format(name), conf, state_dict, prefix, *args)

        def _load_ours(self, fmt, conf, state_dict, prefix, metadata, strict, missing, *args):
            device = self.factory_kwargs["device"]
            parts = {k: v.to(device) for k, v in layer_parts(state_dict, prefix).items()}
            for suffix in (*parts, "comfy_quant"):
                state_dict.pop(f"{prefix}{suffix}")
            self.quant_format = fmt.id
            self._full_precision_mm_config = bool(conf.get("full_precision_matrix_mult", False))
            self._full_precision_mm = self._full_precision_mm or self._full_precision_mm_config
            weight = fmt.read(parts, conf, self._orig_shape, self.factory_kwargs["dtype"])
            self.layout_type = weight._layout_cls
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            if "input_scale" in parts:
                scale = torch.nn.Parameter(parts["input_scale"], requires_grad=False)
                self.register_parameter("input_scale", scale)
            # The parent's parent: ComfyUI's own override would look for the weight again.
            torch.nn.Module._load_from_state_dict(
                self, state_dict, prefix, metadata, strict, missing, *args
            )
            ours = {f"{prefix}weight", f"{prefix}input_scale"}
            missing[:] = [key for key in missing if key not in ours]

        def state_dict(self, *args, destination=None, prefix="", **kwargs):
            state = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
            key = f"{prefix}comfy_quant"
            if self.roundsmith_conf and key in state:
                state[key] = encode_conf({**self.roundsmith_conf, **decode_conf(state[key])})
                for suffix in self.weight.state_dict():
                    del state[f"{prefix}weight{suffix}"]
                for suffix, tensor in stored_parts(self.quant_format, self.weight).items():
                    state[f"{prefix}{suffix}"] = tensor
            return state

        def _forward(self, input, weight, bias):
            if isinstance(weight, QuantizedTensor) and self._full_precision_mm:
                weight = weight.dequantize()
            return super()._forward(input, weight, bias)

    class Operations(base):
        """See :func:`custom_operations`."""

    Operations.Linear = Linear
    logging.debug("Roundsmith operations: compute dtype %s", compute_dtype)
    return Operations
