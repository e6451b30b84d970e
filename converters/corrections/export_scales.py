"""Input scales of a quantized file out into JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from ...checkpoints import Checkpoint, write_text
from ...errors import CheckpointError
from ..matching import search_pattern
from ..stored import stored_layers


class Exported(NamedTuple):
    """Input scales by layer, and what was left out."""

    scales: dict[str, float]
    notes: list[str]

    def json(self) -> str:
        """``{"layer": 0.015}``; the same numbers to the last bit when they are read again."""
        return json.dumps(self.scales, indent=2, ensure_ascii=False)


def export_input_scales(src: str | Path, layers: str | None = None) -> Exported:
    """Read the input scales of a quantized file.

    Args:
        src: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        layers: only layers in whose name this regex is found.

    Raises:
        CheckpointError: a file that cannot be read, or has no such scales.
        FormatError: a layer that cannot be read.
        RecipeError: a pattern that never ends.
    """
    scales: dict[str, float] = {}
    notes: list[str] = []
    with Checkpoint.open(src) as source:
        several = []
        for layer, stored in stored_layers(source).layers.items():
            name = stored.parts.get("input_scale")
            if name is None or (layers is not None and not search_pattern(layers, layer)):
                continue
            if math.prod(source.tensors[name].shape) == 1:
                scales[layer] = float(source.read(name).float())
            else:
                several.append(layer)
    if several:
        notes.append(f"{len(several)} scales of many elements left out ({several[0]})")
    if not scales:
        chosen = "" if layers is None else f" in layers {layers!r}"
        raise CheckpointError(
            f"{src} has no input scales{chosen} to export: set some first, or give another file"
        )
    return Exported(scales, notes)


def save_input_scales(exported: Exported, dst: str | Path, overwrite: bool = False) -> Path:
    """Write the JSON file; it appears under its name when complete.

    Raises CheckpointError where it cannot be written, DestinationExistsError where it exists.
    """
    return write_text(dst, exported.json(), overwrite)
