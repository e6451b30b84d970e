"""Edit the JSON of quantized layers, in the header and the ``comfy_quant`` tensors alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoints import Checkpoint, read_layers
from ...checkpoints.quantization import HEADER_KEY
from ...errors import CheckpointError, FormatError
from ..matching import search_pattern
from ..parts import parts_by_layer, settled
from ..patching import ChangeReport, Destination, Patch, Tool, run_tool, same
from ..patching.patch import CancelCallback, ProgressCallback
from .keys import KNOWN, MEANING, STRUCTURAL, check_fit, check_keys
from .options import EditOptions

if TYPE_CHECKING:
    from ..stored import StoredLayer

_TITLE = "edit"


def edit_file(
    src: str | Path,
    destination: Destination,
    options: EditOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> ChangeReport:
    """Edit what a quantized checkpoint says of its layers; codes and all else are copied as bytes.

    Every layer that is selected is put in order besides: header and tensor say the same (the header
    wins, keys in only one are kept), settings nested under ``params`` come out, scales get their
    format's own shapes. Layers known by their tensors alone get their JSON.

    Args:
        src: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        destination: where the result goes.
        options: the edit; by default only the putting in order.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.

    Raises:
        CheckpointError: a file that cannot be read or written, has no quantized layers, or is of an
            older layout; a pattern that finds no layer.
        FormatError: an edit that contradicts a layer's tensors.
        RecipeError: a value of the wrong type; a pattern that never ends.
        Cancelled: ``cancel`` said so.
    """
    chosen = options or EditOptions()

    def make(source: Checkpoint) -> Tool:
        return _edit(source, chosen)

    return run_tool(src, make, destination, progress, cancel)


def _edit(source: Checkpoint, options: EditOptions) -> Tool:
    described = read_layers(source)
    stored = {} if settled(source, described.layers) else _stored(source)
    confs = dict(described.layers)
    for layer, known in stored.items():
        if all(name == f"{layer}.{suffix}" for suffix, name in known.parts.items()):
            confs.setdefault(layer, known.conf)  # known by its tensors alone
    if not confs:
        raise CheckpointError(
            f"{source.path} has no quantized layers whose settings could be edited: quantize it "
            "first"
        )
    chosen = [x for x in confs if not options.layers or search_pattern(options.layers, x)]
    if not chosen:
        raise CheckpointError(
            f"layers {options.layers!r}: none of the {len(confs)} quantized layers of "
            f"{source.path} is called so (the first is {next(iter(confs))!r})"
        )
    parts = parts_by_layer(source)
    edited = {layer: options.apply(confs[layer]) for layer in chosen}
    for layer, conf in edited.items():
        moved = {x for x in options.touched if not same(conf.get(x), confs[layer].get(x))}
        check_keys(conf, moved, layer)
        if moved & STRUCTURAL:
            check_fit(source, parts[layer], conf, layer)
    patch = Patch(source)
    with_header = options.header or HEADER_KEY in source.metadata
    patch.describe(edited, header=with_header)
    if options.normalise_scalars and stored:
        from .scalars import normalise_scales  # formats, and torch with them

        normalise_scales(patch, {x: stored[x] for x in chosen if x in stored})
    notes = [*described.notes, *_notes(options, edited, confs)]
    return Tool(_TITLE, patch, notes, {"layers edited": f"{len(chosen)} of {len(confs)}"})


def _stored(source: Checkpoint) -> Mapping[str, StoredLayer]:
    """The layers as readers see them; none where one of them cannot be read.

    Raises CheckpointError for a legacy file: its layers have no JSON.
    """
    from ..stored import stored_layers

    try:
        found = stored_layers(source)
    except FormatError:
        return {}  # an edit may be what mends it
    for layer, known in found.layers.items():
        for name in known.parts.values():
            if name.endswith((".scale_weight", ".scale_input")):
                raise CheckpointError(
                    f"{source.path}: {layer!r} is stored in the legacy layout, which has no "
                    "settings to edit: convert it first (roundsmith migrate, or Convert Legacy "
                    "Checkpoint)"
                )
    return found.layers


def _notes(
    options: EditOptions, edited: Mapping[str, dict[str, Any]], before: Mapping[str, dict[str, Any]]
) -> list[str]:
    notes = []
    unknown = sorted({*options.set, *options.add, *options.update} - KNOWN)
    if unknown:
        notes.append(f"{', '.join(unknown)}: no loader known here reads this; written as it is")
    for key in sorted(MEANING & options.touched):
        count = sum(conf.get(key) != before[layer].get(key) for layer, conf in edited.items())
        if count:
            notes.append(
                f"{key} says how codes are read: of {count} layers it is now another, their codes "
                "are as before. Right only if it was wrong"
            )
    missing = [key for key in (*options.update, *options.remove)
               if not any(key in before[layer] for layer in edited)]  # fmt: skip
    if missing:
        notes.append(f"{', '.join(missing)}: no selected layer has this; nothing to do")
    return notes
