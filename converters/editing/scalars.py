"""Scales in the shapes and dtypes that readers expect; their values stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from ...checkpoints.dtypes import DTYPES
from ..patching import Patch
from ..stored import StoredLayer, empty_parts, parts_of

_INPUT_SCALES = ("input_scale", "scale_input")
_UNREADABLE = {"F8_E8M0": torch.uint8}  # ComfyUI's reader lacks the dtype


def normalise_scales(patch: Patch, layers: Mapping[str, StoredLayer]) -> None:
    """Bring the scales of quantized layers into their format's own shapes and dtypes.

    One element becomes ``[]`` where the format has one scale a tensor; a 1×1 grid of blocks and a
    single row keep their shape. Bytes are copied where only the shape was wrong.
    """
    source = patch.source
    for stored in layers.values():
        empty = empty_parts(source, stored.parts)
        wanted = stored.format.normalise(empty, stored.conf)
        values = None
        for suffix, name in stored.parts.items():
            target, have = wanted.get(suffix), empty.get(suffix)
            if suffix == "weight" or target is None or have is None:
                continue
            shape = tuple(target.shape)
            if suffix in _INPUT_SCALES and target.numel() == 1:
                shape = ()
            same_size = target.dtype.itemsize == have.dtype.itemsize
            if same_size and math.prod(shape) == have.numel():
                dtype = target.dtype
                patch.view(name, _UNREADABLE.get(source.tensors[name].dtype_name, dtype), shape)
            else:
                values = values or parts_of(source, stored)
                patch.put(name, values[suffix].reshape(shape).contiguous())


def orphans(patch: Patch, layers: Mapping[str, StoredLayer]) -> Iterable[str]:
    """Names of scales that belong to no quantized layer: their weight is gone, or not quantized."""
    tensors = patch.source.tensors
    used = {name for stored in layers.values() for name in stored.parts.values()}
    for name in tensors:
        layer, _, suffix = name.rpartition(".")
        if suffix not in ORPHANED or name in used:
            continue
        info = tensors.get(f"{layer}.weight")
        if info is None or info.dtype_name not in _CODES:
            yield name


ORPHANED = ("scale_weight", "scale_input", "weight_scale", "weight_scale_2", "weight_scalar",
            "input_scale")  # fmt: skip
"""Suffixes of tensors that mean something beside quantized weights only."""

_CODES = tuple(
    name for name, dtype in DTYPES.items() if dtype.itemsize == 1 and dtype is not torch.bool
)
