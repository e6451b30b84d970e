"""What names, shapes and dtypes of a file say of its layers, without torch and formats."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint, TensorInfo
    from .source import Source

_NOT_PARTS = ("bias", "comfy_quant")
_CODES = ("I8", "U8", "F8_E4M3", "F8_E5M2")
_SCALES = ("weight_scale", "weight_scale_2", "input_scale")
_OLD = ("scale_weight", "scale_input", "scaled_fp8")


def parts_by_layer(source: Source) -> dict[str, dict[str, str]]:
    """Names of what a layer may consist of, by suffix, for every name before a suffix."""
    parts: dict[str, dict[str, str]] = {}
    for name in source.tensors:
        layer, _, suffix = name.rpartition(".")
        if suffix not in _NOT_PARTS:
            parts.setdefault(layer, {})[suffix] = name
    return parts


def settled(source: Checkpoint, described: Collection[str]) -> bool:
    """Whether the file is plainly in order: all its quantized layers are ``described`` in JSON, and
    no format would store their scales in another shape or dtype.

    Only what most files hold is known here; False says that formats must be asked.
    """
    for layer, parts in parts_by_layer(source).items():
        found = {suffix: source.tensors[name] for suffix, name in parts.items()}
        if layer in described:
            if not _plain(found):
                return False
        elif any(suffix in found for suffix in (*_SCALES, *_OLD)) or any(
            info.dtype_name in _CODES for info in found.values()
        ):
            return False
    return True


def _plain(parts: Mapping[str, TensorInfo]) -> bool:
    """Whether a layer's scales have a shape and dtype that every format of its codes keeps."""
    weight, scale = parts.get("weight"), parts.get("weight_scale")
    single = [parts[suffix] for suffix in ("weight_scale_2", "input_scale") if suffix in parts]
    if weight is None or scale is None or {*parts} - {"weight", *_SCALES}:
        return False
    if any((info.dtype_name, info.shape) != ("F32", ()) for info in single):
        return False
    blocks = len(scale.shape) == 2 and min(scale.shape) > 1
    kind = weight.dtype_name, scale.dtype_name
    if kind == ("F8_E4M3", "U8"):
        return blocks and "weight_scale_2" not in parts
    if kind == ("U8", "F8_E4M3"):
        return blocks and "weight_scale_2" in parts
    if scale.dtype_name != "F32" or "weight_scale_2" in parts:
        return False
    rows = weight.shape[0] if len(weight.shape) == 2 else 0
    row_scales = {"I8": (rows, 1), "F8_E4M3": (rows,)}.get(weight.dtype_name)
    if weight.dtype_name == "F8_E5M2" or rows < 2:
        return rows >= 1 and scale.shape == ()
    return row_scales is not None and (scale.shape in ((), row_scales) or blocks)
