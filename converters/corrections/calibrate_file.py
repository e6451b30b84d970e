"""Input scales into a quantized file: everything else is copied byte by byte.

A scale is ``<layer>.input_scale``, float32 ``[]`` (``<layer>.scale_input`` in a legacy fp8_scaled
file). A layer's JSON stands in its ``comfy_quant`` tensor and in the header; where the two differ,
both get what a reader makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from ...checkpoints import Checkpoint, read_layers
from ...checkpoints.quantization import HEADER_KEY, TENSOR_SUFFIX
from ...errors import CheckpointError
from ..calibration import Calibration
from ..matching import search_pattern
from ..model import ModelView
from ..patching import Destination, Patch
from ..progress import Progress
from ..stored import StoredLayer
from .calibrate_options import MEANING, CalibrateOptions, CalibrateReport, ScaledLayer
from .scale_sources import Found, source_of

METADATA_KEY = "roundsmith_input_scales"
"""Metadata that say how the input scales of a file came about: a JSON list of runs."""

_LEGACY_NAMES = {"scale_weight": "scale_input"}


def calibrate_file(
    src: str | Path,
    dst: str | Path | Destination,
    options: CalibrateOptions | None = None,
    calibration: Calibration | str | Path | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    overwrite: bool = False,
) -> CalibrateReport:
    """Write a copy of a quantized file with input scales added or replaced.

    Codes, scales, unknown tensors and metadata are copied as they are. Layers that nothing is known
    of keep the scale they have; so do layers whose format ComfyUI scales inputs of at run time,
    unless scales are imported. A second run with the same settings changes nothing.

    Args:
        src: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        dst: the file to write, one file whatever ``src`` is; or in place, or nowhere, as a
            :class:`~roundsmith.converters.patching.Destination` says.
        options: where the scales come from; by default they are measured.
        calibration: statistics, or their file, for the mode ``measured``.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.
        overwrite: replace an existing ``dst``.

    Raises:
        CheckpointError: a file that cannot be read or written, or has no quantized layers, or none
            of the name asked for; scales or LoRAs of another model.
        RecipeError: settings that contradict each other.
        RoundsmithError: statistics of another model.
        Cancelled: ``cancel`` said so.
    """
    options = options or CalibrateOptions()
    if not isinstance(dst, Destination):
        dst = Destination(Path(dst), overwrite)
    with Checkpoint.open(src) as source:
        path = dst.resolve(source)
        model = ModelView(source)
        if not model.stored:
            raise CheckpointError(
                f"{src} has no quantized layers, which input scales belong to: quantize it first"
            )
        _check_layers(options, model, src)
        scales = source_of(options, model, calibration)
        layers: list[ScaledLayer] = []
        patch = Patch(source)
        for name, stored in model.stored.items():
            before, found = _current(source, stored), scales.find(name, stored)
            value = before if found.reason else _as_stored(found)
            layers.append(
                ScaledLayer(name, value, before, found.reach, found.largest, found.reason)
            )
            if value is not None and not found.reason:
                patch.put(_name(name, stored), torch.tensor(value, dtype=torch.float32))
        _reconcile(patch)
        if any(not layer.reason for layer in layers):
            patch.metadata.update(_history(source, options))
        warnings = [*scales.warnings, *_notes(model, layers)]
        if path is not None and (patch.changes() or not dst.in_place):
            warnings += patch.write(
                path, overwrite=dst.overwrite or dst.in_place, progress=progress, cancel=cancel
            )
    where = "" if path is None else str(path)
    return CalibrateReport(
        where, options.mode, MEANING[options.mode], tuple(layers), tuple(warnings)
    )


def _check_layers(options: CalibrateOptions, model: ModelView, src: object) -> None:
    pattern = options.layers
    if pattern is None or any(search_pattern(pattern, layer) for layer in model.stored):
        return
    some = ", ".join(map(repr, list(model.stored)[:3]))
    raise CheckpointError(
        f"layers {pattern!r}: none of the {len(model.stored)} quantized layers of {src} is called "
        f"so; they are {some}{', ...' if len(model.stored) > 3 else ''}"
    )


def _name(layer: str, stored: StoredLayer) -> str:
    """Name of a layer's input scale in the file: its own, or what its other tensors suggest."""
    known = stored.parts.get("input_scale")
    if known is not None:
        return known
    suffix = stored.parts.get("weight_scale", "").rpartition(".")[2]
    return f"{layer}.{_LEGACY_NAMES.get(suffix, 'input_scale')}"


def _current(source: Checkpoint, stored: StoredLayer) -> float | None:
    name = stored.parts.get("input_scale")
    if name is None or source.tensors[name].nbytes == 0:
        return None
    return float(source.read(name).float().reshape(-1)[0])


def _as_stored(found: Found) -> float:
    assert found.scale is not None
    return float(torch.tensor(found.scale, dtype=torch.float32))


def _reconcile(patch: Patch) -> None:
    """Let header and tensors both say what a reader makes of them where they differ."""
    source = patch.source
    described = read_layers(source).layers
    tensors = {x: conf for x, conf in described.items() if x + TENSOR_SUFFIX in source.tensors}
    patch.describe(tensors, header=False)
    if HEADER_KEY in source.metadata:
        patch.describe(described, tensors=False)


def _history(source: Checkpoint, options: CalibrateOptions) -> dict[str, str]:
    """The runs that made the file's scales, this one last; later ones overrule earlier ones."""
    try:
        runs = json.loads(source.metadata.get(METADATA_KEY, "[]"))
    except ValueError:
        runs = []
    this = options.provenance()
    earlier = [run for run in runs if run != this] if isinstance(runs, list) else []
    return {METADATA_KEY: json.dumps([*earlier, this], ensure_ascii=False)}


def _notes(model: ModelView, layers: list[ScaledLayer]) -> list[str]:
    decoded = [
        x.name
        for x in layers
        if not x.reason and model.stored[x.name].conf.get("full_precision_matrix_mult")
    ]
    notes = list(model.notes)
    if decoded:
        notes.append(
            f"{len(decoded)} layers ask for full-precision products and will not use their input "
            f"scale ({decoded[0]})"
        )
    return notes
