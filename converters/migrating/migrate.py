"""A checkpoint of an older layout into today's, or cleaned in its own; codes are never touched.

- ``scale_weight`` / ``scale_input`` become ``weight_scale`` / ``input_scale``; the marker and
  scales of layers that are not quantized go; each layer gets its JSON, in its tensor and the
  header, with the format that its tensors have.
- A legacy input scale of 1.0 goes too: ComfyUI takes it for none, while 1.0 of a comfy_quant layer
  clips the inputs at the grid's maximum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...checkpoints import Checkpoint
from ...errors import CheckpointError
from ..editing.scalars import normalise_scales, orphans
from ..legacy_layout import OLD_NAMES
from ..matching import search_pattern
from ..patching import ChangeReport, Destination, Patch, Tool, run_tool
from ..patching.patch import CancelCallback, ProgressCallback
from ..stored import StoredLayer
from .detect import Detected, detect
from .legacy import write_legacy
from .options import MigrateOptions
from .settle import settle

_TITLES = {
    "comfy_quant": "converted to comfy_quant",
    "same": "cleaned",
    "fp8_scaled": "converted to fp8_scaled",
}


def migrate_file(
    src: str | Path,
    destination: Destination,
    options: MigrateOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> ChangeReport:
    """Convert a quantized checkpoint to another layout, or clean it in the one it has.

    Args:
        src: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        destination: where the result goes.
        options: the layout, and what to settle by hand.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.

    Raises:
        CheckpointError: a file that cannot be read or written, or holds nothing to convert; a layer
            that ``hp_filter`` names and that is quantized.
        FormatError: a layer that the options contradict, or that the layout cannot hold.
        RecipeError: a pattern that never ends.
        Cancelled: ``cancel`` said so.
    """
    chosen = options or MigrateOptions()

    def make(source: Checkpoint) -> Tool:
        return _migrate(source, chosen)

    return run_tool(src, make, destination, progress, cancel)


def _migrate(source: Checkpoint, options: MigrateOptions) -> Tool:
    found = detect(source)
    _check_high_precision(source, found, options.hp_filter)
    if not found.layers:
        advice = (
            "its FP8 weights have no scales: they are values as they stand, any loader reads them"
            if found.plain
            else "quantize it instead"
        )
        raise CheckpointError(f"{source.path} has no quantized layers to convert: {advice}")
    facts = found.facts()
    layers = {x: settle(source, x, stored, options) for x, stored in found.layers.items()}
    patch = Patch(source)
    dropped = list(orphans(patch, layers))
    for name in dropped:
        patch.drop(name)
    notes = [note for note in found.notes if "that nothing uses" not in note]
    if dropped:
        notes.append(f"{len(dropped)} scales of layers that are not quantized go ({dropped[0]})")
    normalise_scales(patch, layers)
    if options.to == "fp8_scaled" or (options.to == "same" and found.legacy):
        notes += write_legacy(patch, found, layers, options)
    else:
        notes += _write_comfy_quant(patch, found, layers, options)
    return Tool(_TITLES[options.to], patch, notes, facts)


def _check_high_precision(source: Checkpoint, found: Detected, pattern: str | None) -> None:
    if pattern is None:
        return
    bad = [x for x in (*found.layers, *found.plain) if search_pattern(pattern, x)]
    if bad:
        dtype = source.tensors[f"{bad[0]}.weight"].dtype_name
        raise CheckpointError(
            f"{source.path}: {len(bad)} layers that hp_filter {pattern!r} names are quantized "
            f"({bad[0]!r} is {dtype}): what it has lost cannot be put back; take another file, or "
            "narrow the pattern"
        )


def _write_comfy_quant(
    patch: Patch, found: Detected, layers: dict[str, StoredLayer], options: MigrateOptions
) -> list[str]:
    source, notes = patch.source, []
    for name in found.markers:
        patch.drop(name)
    unused = 0
    confs: dict[str, dict[str, Any]] = {}
    for layer, stored in layers.items():
        legacy = layer in found.legacy
        if layer in found.foreign and options.to == "same":
            continue  # its own layout is the one it has
        if layer in found.foreign:
            _from_foreign(patch, layer, stored)
        own = stored.parts.get("input_scale", "")
        if legacy and _is_one(source, own) and not options.add_input_scales:
            patch.drop(own)
            unused += 1
        for name in stored.parts.values():
            suffix = name.removeprefix(f"{layer}.")
            patch.rename(name, f"{layer}.{OLD_NAMES.get(suffix, suffix)}")
        conf = {key: value for key, value in stored.conf.items() if key != "form"}
        if options.full_precision_matrix_mult is not None:
            conf.pop("full_precision_matrix_mult", None)
            if options.full_precision_matrix_mult:
                conf["full_precision_matrix_mult"] = True
        confs[layer] = conf
        if not own and (_always_scaled(stored) or _takes_scale(stored, options)):
            patch.put(f"{layer}.input_scale", torch.ones(()))
    patch.describe(confs)
    if unused:
        notes.append(
            f"{unused} input scales of 1.0 go: ComfyUI takes them for none in a legacy file, and "
            "as a real scale elsewhere"
        )
    return notes


def _is_one(source: Checkpoint, name: str) -> bool:
    if name not in source.tensors or torch.Size(source.tensors[name].shape).numel() != 1:
        return False
    return float(source.read(name).float()) == 1.0


def _takes_scale(stored: StoredLayer, options: MigrateOptions) -> bool:
    return options.add_input_scales and stored.format.input_max is not None


def _always_scaled(stored: StoredLayer) -> bool:
    """Whether the format's files carry an input scale whatever it is."""
    fmt = stored.format
    size = stored.conf.get("group_size")
    if not fmt.group_sizes or size is None or "input_scale" in stored.parts:
        return False
    spec = fmt.replace(fmt.bind(), group_size=size)
    return "input_scale" in fmt.scale_storage(spec, (size, size))


def _from_foreign(patch: Patch, layer: str, stored: StoredLayer) -> None:
    """Another tool's tensors become those that the format has under its own names."""
    source = patch.source
    parts = {
        suffix: source.read(name)
        if suffix != "weight"
        else torch.empty(
            source.tensors[name].shape, dtype=source.tensors[name].dtype, device="meta"
        )
        for suffix, name in stored.parts.items()
    }
    wanted = stored.format.normalise(parts, stored.conf)
    weight = stored.parts["weight"]
    patch.view(weight, wanted["weight"].dtype, tuple(wanted["weight"].shape))
    for name in stored.parts.values():
        if name != weight:
            patch.drop(name)
    for suffix, tensor in wanted.items():
        if suffix != "weight":
            patch.put(f"{layer}.{suffix}", tensor.contiguous())
