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
from torch import Tensor

from ...checkpoints import (
    Checkpoint,
    CheckpointWriter,
    Entry,
    decode_conf,
    encode_conf,
    layers_metadata,
    read_layers,
)
from ...checkpoints.quantization import HEADER_KEY, TENSOR_SUFFIX
from ...errors import Cancelled, CheckpointError
from ..calibration import Calibration
from ..model import ModelView
from ..report import Progress
from ..stored import StoredLayer
from .calibrate_options import MEANING, CalibrateOptions, CalibrateReport, ScaledLayer
from .scale_sources import Found, source_of

METADATA_KEY = "roundsmith_input_scales"
"""Metadata that say how the input scales of a file came about: a JSON list of runs."""

_LEGACY_NAMES = {"scale_weight": "scale_input"}
_CHUNK = 4 << 20  # bytes


def calibrate_file(
    src: str | Path,
    dst: str | Path,
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
        dst: the file to write, one file whatever ``src`` is.
        options: where the scales come from; by default they are measured.
        calibration: statistics, or their file, for the mode ``measured``.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.
        overwrite: replace an existing ``dst``.

    Raises:
        CheckpointError: a file that cannot be read or written, or has no quantized layers; scales
            or LoRAs of another model.
        RecipeError: settings that contradict each other.
        RoundsmithError: statistics of another model.
        Cancelled: ``cancel`` said so.
    """
    options = options or CalibrateOptions()
    dst = Path(dst)
    with Checkpoint.open(src) as source:
        if dst.resolve() in {info.file.resolve() for info in source.tensors.values()}:
            raise CheckpointError(f"{dst} is the source itself: choose another destination")
        model = ModelView(source)
        if not model.stored:
            raise CheckpointError(
                f"{src} has no quantized layers, which input scales belong to: quantize it first"
            )
        scales = source_of(options, model, calibration)
        layers: list[ScaledLayer] = []
        patches: dict[str, Tensor] = {}
        for name, stored in model.stored.items():
            before, found = _current(source, stored), scales.find(name, stored)
            value = before if found.reason else _as_stored(found)
            layers.append(
                ScaledLayer(name, value, before, found.reach, found.largest, found.reason)
            )
            if value is not None and not found.reason:
                patches[_name(name, stored)] = torch.tensor(value, dtype=torch.float32)
        descriptions, header = _descriptions(source)
        patches.update(descriptions)
        metadata = {**source.metadata, **header}
        if any(not layer.reason for layer in layers):
            metadata.update(_history(source, options))
        entries: dict[str, Entry] = {n: info.entry for n, info in source.tensors.items()}
        entries.update({n: (t.dtype, tuple(t.shape)) for n, t in patches.items()})
        with CheckpointWriter(dst, entries, metadata, overwrite=overwrite) as writer:
            for name, tensor in patches.items():
                writer.write(name, tensor)
            _copy(source, writer, [n for n in source.tensors if n not in patches], progress, cancel)
    warnings = (*scales.warnings, *_notes(model, layers))
    return CalibrateReport(str(dst), options.mode, MEANING[options.mode], tuple(layers), warnings)


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


def _descriptions(source: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What the file says of its layers where header and tensors differ: tensors, metadata."""
    described = read_layers(source).layers
    tensors = {}
    for layer, conf in described.items():
        name = f"{layer}{TENSOR_SUFFIX}"
        if name in source.tensors and decode_conf(source.read(name)) != conf:
            tensors[name] = encode_conf(conf)
    text = source.metadata.get(HEADER_KEY)
    if text is None:
        return tensors, {}
    listed = json.loads(text).get("layers", {})
    together = {**listed, **described}
    return tensors, {} if together == listed else {HEADER_KEY: layers_metadata(together)}


def _history(source: Checkpoint, options: CalibrateOptions) -> dict[str, str]:
    """The runs that made the file's scales, this one last; later ones overrule earlier ones."""
    try:
        runs = json.loads(source.metadata.get(METADATA_KEY, "[]"))
    except ValueError:
        runs = []
    this = options.provenance()
    earlier = [run for run in runs if run != this] if isinstance(runs, list) else []
    return {METADATA_KEY: json.dumps([*earlier, this], ensure_ascii=False)}


def _copy(
    source: Checkpoint,
    writer: CheckpointWriter,
    names: list[str],
    progress: Callable[[Progress], None] | None,
    cancel: Callable[[], bool] | None,
) -> None:
    total, done = sum(source.tensors[name].nbytes for name in names), 0
    for index, name in enumerate(names, 1):
        size = source.tensors[name].nbytes
        for first in range(0, size, _CHUNK):
            if cancel is not None and cancel():
                raise Cancelled("cancelled; nothing was written under the destination's name")
            if progress is not None:
                progress(Progress(name, index, len(names), done + first, total))
            data = source.read_bytes(name, first, min(first + _CHUNK, size))
            writer.write_bytes(name, first, data)
        done += size


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
