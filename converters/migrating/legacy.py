"""A checkpoint made into, or cleaned in, the older layout: see ``converters/legacy_layout.py``."""

from __future__ import annotations

import torch

from ...checkpoints.dtypes import DTYPES
from ...errors import FormatError
from ..legacy_layout import (
    FLOAT8,
    FULL,
    NEW_NAMES,
    NOT_E4M3,
    holds,
    marker_elements,
    marker_names,
    several_scales,
)
from ..patching import Patch
from ..stored import StoredLayer
from .detect import Detected
from .options import MigrateOptions

_KEPT = ("format", "group_size", "orig_dtype", "orig_shape", FULL)  # the tensors tell, or defaults


def write_legacy(
    patch: Patch, found: Detected, layers: dict[str, StoredLayer], options: MigrateOptions
) -> list[str]:
    """Collect what makes the file a clean one of the older layout; returns notes.

    Raises :class:`FormatError` for a layer the layout cannot hold.
    """
    moved = [x for x in layers if x not in found.legacy] if options.to == "fp8_scaled" else []
    for layer in moved:
        _check(layer, layers[layer])
        stored = layers[layer]
        for suffix, name in stored.parts.items():
            patch.rename(name, f"{layer}.{NEW_NAMES.get(suffix, suffix)}")
        if "weight_scale" not in stored.parts:
            patch.put(f"{layer}.scale_weight", torch.ones(()))
    patch.undescribe(moved)
    legacy = [*found.legacy, *moved]
    scaled = [x for x in legacy if "input_scale" in layers[x].parts]
    if options.add_input_scales:
        missing = [x for x in legacy if "input_scale" not in layers[x].parts]
        for layer in missing:
            patch.put(f"{layer}.scale_input", torch.ones(()))
        scaled += missing
    float8 = [x for x in legacy if layers[x].format.weight_dtype in FLOAT8]
    if not float8:
        for name in found.markers:
            patch.drop(name)
        return []
    notes = _mark(patch, found, {x: layers[x] for x in float8}, bool(scaled), options)
    lost = {key for x in moved for key in layers[x].conf if key not in _KEPT}
    if lost:
        notes.append(f"the older layout has no place for {', '.join(sorted(lost))}: gone")
    dtypes = {layers[x].format.weight_dtype for x in float8}
    if dtypes != {torch.float8_e4m3fn}:
        notes.append(NOT_E4M3)
    several = [x for x in float8 if _scales(patch, layers[x]) > 1]
    if several:
        notes.append(several_scales(several))
    return notes


def _check(layer: str, stored: StoredLayer) -> None:
    fmt = stored.format
    if not holds(fmt) or stored.conf.get("convrot"):
        raise FormatError(
            f"layer {layer!r} is {fmt.id}; the older layout holds FP8 with plain scales only: "
            "quantize the original model to float8_e4m3fn first, or keep comfy_quant"
        )


def _mark(
    patch: Patch,
    found: Detected,
    layers: dict[str, StoredLayer],
    scaled: bool,
    options: MigrateOptions,
) -> list[str]:
    """Put the marker, of the elements asked for, or that fit what the file says so far."""
    dtypes = {stored.format.weight_dtype for stored in layers.values()}
    if len(dtypes) > 1:
        one, other = (
            next(x for x in layers if layers[x].format.weight_dtype == dtype) for dtype in dtypes
        )
        raise FormatError(
            f"layers {one!r} and {other!r} have different FP8 dtypes; the older layout names one "
            "for the file: keep comfy_quant"
        )
    elements, notes = _elements(found, layers, scaled, options)
    for name in list(found.markers) or marker_names(layers):
        own, own_dtype = found.markers.get(name, (None, ""))
        if elements is not None and elements != own:
            patch.put(name, torch.zeros(elements, dtype=DTYPES.get(own_dtype, next(iter(dtypes)))))
    return notes


def _scales(patch: Patch, stored: StoredLayer) -> int:
    name = stored.parts.get("weight_scale")
    return 1 if name is None else torch.Size(patch.source.tensors[name].shape).numel()


def _elements(
    found: Detected, layers: dict[str, StoredLayer], scaled: bool, options: MigrateOptions
) -> tuple[int | None, list[str]]:
    """Elements of the marker (None: as it is), and what to know of the choice."""
    if options.marker is not None:
        return options.marker, []
    if options.add_input_scales:
        return 1, []
    asked = options.full_precision_matrix_mult
    if found.markers and (asked is None or _asks_full(found) == asked):
        return None, []
    full = [x for x, stored in layers.items() if stored.conf.get(FULL)]
    return marker_elements(layers, full, scaled, asked)


def _asks_full(found: Detected) -> bool:
    return any(elements == 2 for elements, _ in found.markers.values())
