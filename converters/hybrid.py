"""MXFP8 files made hybrid: the same codes, and a scale a layer to run as FP8 by on older GPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ..checkpoints import Checkpoint
from ..errors import CheckpointError
from ..layouts import get_format
from ..layouts.codec import decode
from ..layouts.geometries import Scales
from .corrections.names import LayerNames
from .matching import check_pattern, search_pattern
from .model import ModelView
from .patching import ChangeReport, Destination, Patch, Tool, run_tool
from .patching.patch import CancelCallback, ProgressCallback
from .stored import StoredLayer, empty_parts, stored_layers
from .strict import Strict

_FROM, _TO = "mxfp8", "hybrid_mxfp8"
_SCALAR = "weight_scalar"
_CHUNK = 4 << 20  # codes decoded at once


class HybridOptions(Strict):
    """Where the FP8 scales come from."""

    scalar: Literal["largest", "tight", "import"] = Field(
        "largest",
        description="the largest block scale, the largest weight over 448, or from another file",
    )
    source: Path | None = Field(None, description="import: a tensorwise FP8 file of the model")
    layers: str | None = Field(None, description="only layers in whose name this regex is found")

    @field_validator("layers")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else check_pattern(pattern)

    @model_validator(mode="after")
    def _check_source(self) -> HybridOptions:
        if (self.scalar == "import") != (self.source is not None):
            raise ValueError("scalar import and a source go together: give both or neither")
        return self


def make_hybrid(
    src: str | Path,
    destination: Destination,
    options: HybridOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> ChangeReport:
    """Give the MXFP8 layers of a file an FP8 scale; codes and block scales are copied as bytes.

    Layers that are hybrid already get the scale that is asked for; others stay as they are.

    Args:
        src: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        destination: where the result goes.
        options: where the scales come from.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.

    Raises:
        CheckpointError: a file that cannot be read or written, or has no MXFP8 layers; an imported
            file that lacks a layer, or holds no usable scale of it.
        FormatError: a layer that cannot be read.
        RecipeError: a pattern that never ends.
        Cancelled: ``cancel`` said so.
    """
    chosen = options or HybridOptions()

    def make(source: Checkpoint) -> Tool:
        return _hybrid(source, chosen)

    return run_tool(src, make, destination, progress, cancel)


def _hybrid(source: Checkpoint, options: HybridOptions) -> Tool:
    found = stored_layers(source)
    layers = {
        name: stored for name, stored in found.layers.items() if stored.format.id in (_FROM, _TO)
    }
    if not layers:
        kinds = sorted({stored.format.id for stored in found.layers.values()})
        raise CheckpointError(
            f"{source.path} has no MXFP8 layers to make hybrid "
            f"({', '.join(kinds) or 'nothing is quantized'}): quantize the original to mxfp8 first"
        )
    chosen = [x for x in layers if not options.layers or search_pattern(options.layers, x)]
    if not chosen:
        raise CheckpointError(
            f"layers {options.layers!r}: none of the {len(layers)} MXFP8 layers of {source.path} "
            f"is called so (the first is {next(iter(layers))!r})"
        )
    patch, notes = Patch(source), list(found.notes)
    imported = {} if options.source is None else _imported(options.source, chosen)
    clipped = []
    for layer in chosen:
        scales = _scales(source, layers[layer])
        if options.source is None:
            scalar = _computed(source, layers[layer], scales, options.scalar)
        else:
            scalar = torch.tensor(imported[layer], dtype=torch.float32)
            if float(scalar) < float(scales.block.amax()) / 2:
                clipped.append(layer)
        patch.put(layers[layer].parts.get(_SCALAR, f"{layer}.{_SCALAR}"), scalar)
    patch.describe({x: {**layers[x].conf, "format": _TO} for x in chosen})
    if clipped:
        notes.append(
            f"{len(clipped)} imported scales are too small for their layers ({clipped[0]}): as FP8 "
            "the largest weights are clipped"
        )
    facts: dict[str, Any] = {"layers made hybrid": f"{len(chosen)} of {len(layers)}"}
    return Tool("hybrid", patch, notes, facts)


def _scales(source: Checkpoint, stored: StoredLayer) -> Scales:
    parts = empty_parts(source, {"weight": stored.parts["weight"]})
    parts.update({s: source.read(name) for s, name in stored.parts.items() if s != "weight"})
    return stored.format.unpack(parts, stored.conf).scales


def _computed(source: Checkpoint, stored: StoredLayer, scales: Scales, form: str) -> Tensor:
    target = get_format(_TO)
    rows, columns = source.tensors[stored.parts["weight"]].shape
    if form == "tight":
        scales = scales._replace(peak=_peak(source, stored, scales))
    return target.pack_scales(scales, target.bind(form=form), (rows, columns))[_SCALAR]


def _peak(source: Checkpoint, stored: StoredLayer, scales: Scales) -> Tensor:
    """Largest magnitude of the decoded weight, float32 ``[]``; some rows are in memory at a time.
    """
    name = stored.parts["weight"]
    rows, columns = source.tensors[name].shape
    step, peak = max(_CHUNK // max(columns, 1), 1), torch.zeros(())
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        codes = source.read_rows(name, part.start, part.stop)
        peak = torch.maximum(peak, decode(codes, stored.format.grid, scales.rows(part)).abs().max())
    return peak


def _imported(path: Path, layers: list[str]) -> Mapping[str, float]:
    """One scale a layer from a file with tensorwise FP8 layers."""
    with Checkpoint.open(path) as other:
        model = ModelView(other)
        names = LayerNames(model.stored)
        found = {}
        for layer in layers:
            own = names.find(layer)
            stored = model.stored.get(own or "")
            scale = None if stored is None else stored.parts.get("weight_scale")
            if scale is None or torch.Size(other.tensors[scale].shape).numel() != 1:
                why = "is not in it" if stored is None else f"is {stored.format.id} there"
                raise CheckpointError(
                    f"{path}: layer {layer!r} {why}; a file with tensorwise FP8 layers of the same "
                    "model is needed: give another, compute the scales, or narrow layers"
                )
            value = float(other.read(scale).float())
            if not (math.isfinite(value) and value > 0):
                raise CheckpointError(
                    f"{path}: the scale of {own!r} is {value}, which nothing can be divided by: "
                    "give another file, or compute the scales"
                )
            found[layer] = value
    return found
