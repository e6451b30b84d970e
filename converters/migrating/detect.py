"""What a checkpoint is: which layout its quantized layers have, and the evidence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from ...checkpoints import Checkpoint, QuantizedLayers, read_layers
from ...errors import CheckpointError
from ..legacy_layout import FLOAT8, MARKER, OLD_NAMES
from ..stored import StoredLayer, stored_layers


@dataclass
class Detected:
    """A checkpoint's quantized layers, sorted by how they are described.

    Attributes:
        described: what the file's JSON says.
        layers: all quantized layers.
        legacy: those with ``scale_weight``.
        bare: those known by their tensors alone, under today's names.
        foreign: those in another tool's layout.
        markers: elements and dtype of the markers, by name.
        plain: FP8 weights without scales, which are values as they stand.
        notes: what is odd about the file.
    """

    described: QuantizedLayers
    layers: dict[str, StoredLayer]
    legacy: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    markers: dict[str, tuple[int, str]] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The file in a few words."""
        kinds = []
        for names, int8, other in (
            (self.legacy, "legacy INT8", "legacy fp8_scaled"),
            (self.bare, "INT8 with scales, no settings", "FP8 with scales, no settings"),
        ):
            eight = sum(self.layers[x].format.grid.dtype == torch.int8 for x in names)
            kinds += [int8] * bool(eight) + [other] * (len(names) > eight)
        kinds += ["comfy_quant"] * bool(self.described.layers)
        kinds += ["another tool's layout"] * bool(self.foreign)
        kinds += ["plain FP8"] * bool(self.plain and not kinds)
        return " + ".join(kinds) or "not quantized"

    def facts(self) -> dict[str, Any]:
        """What a person is shown."""
        counted = Counter(layer.format.id for layer in self.layers.values())
        shown: dict[str, Any] = {"the file is": self.kind}
        if counted:
            shown["layers"] = ", ".join(f"{n} × {name}" for name, n in counted.most_common())
        if self.plain:
            shown["FP8 weights without scales"] = len(self.plain)
        for name, (elements, dtype) in self.markers.items():
            what = "full-precision products" if elements == 2 else "products of codes"
            shown[name] = f"{dtype}, {elements} elements: {what}"
        inputs = sum("input_scale" in layer.parts for layer in self.layers.values())
        if inputs:
            shown["input scales"] = inputs
        return shown


def detect(source: Checkpoint) -> Detected:
    """Look at names, dtypes and shapes.

    Raises FormatError for a layer that contradicts itself, CheckpointError for one whose scale is
    there twice.
    """
    _check_twice(source)
    stored = stored_layers(source)
    found = Detected(read_layers(source), stored.layers, notes=list(stored.notes))
    for layer, known in stored.layers.items():
        suffixes = {name.removeprefix(f"{layer}.") for name in known.parts.values()}
        if layer in found.described.layers:
            continue
        if suffixes & OLD_NAMES.keys():
            found.legacy.append(layer)
        elif any(name != f"{layer}.{suffix}" for suffix, name in known.parts.items()):
            found.foreign.append(layer)
        else:
            found.bare.append(layer)
    for name, info in source.tensors.items():
        if name == MARKER or name.endswith(f".{MARKER}"):
            found.markers[name] = (torch.Size(info.shape).numel(), info.dtype_name)
            continue
        layer, _, suffix = name.rpartition(".")
        if suffix == "weight" and info.dtype in FLOAT8 and layer not in stored.layers:
            found.plain.append(layer)
    return found


def _check_twice(source: Checkpoint) -> None:
    for name in source.tensors:
        layer, _, suffix = name.rpartition(".")
        other = f"{layer}.{OLD_NAMES[suffix]}" if suffix in OLD_NAMES else ""
        if other in source.tensors:
            raise CheckpointError(
                f"{source.path} holds both {name!r} and {other!r}, the same in two layouts: which "
                "one the codes were made with cannot be told; fetch or convert the file again"
            )
