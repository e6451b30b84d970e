"""How the output says what its quantized layers are: ``comfy_quant``, or the older ``fp8_scaled``.

Everything before this works with today's names; here a plan's tensors get the names and shapes they
have in the file, and a sink that writes them there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoints import Entry
from ..errors import FormatError
from ..layouts import Format, get_format
from .legacy_layout import (
    FULL,
    NEW_NAMES,
    NOT_E4M3,
    holds,
    marker_elements,
    marker_names,
    several_scales,
)
from .recipe import Recipe
from .source import Entries, Sink

if TYPE_CHECKING:
    from .plan import TensorPlan

_SCALES = ("weight_scale", "input_scale")


@dataclass(frozen=True)
class Written:
    """A plan's tensors as the file has them.

    Attributes:
        tensors: the plan's, each with the entries it makes in the file.
        names: the file's name of every tensor that has another one there.
        markers: tensors of the file that come from none of the source's; all zeros.
        warnings: what a person should know.
    """

    tensors: tuple[TensorPlan, ...]
    names: Mapping[str, str]
    markers: Entries
    warnings: tuple[str, ...] = ()


def written(tensors: Sequence[TensorPlan], recipe: Recipe) -> Written:
    """What the recipe's ``output`` and ``keep_1d_scales`` make of planned tensors.

    Raises:
        FormatError: a layer that the older layout cannot hold, or layers that contradict each
            other where it has one answer for the file.
    """
    old = recipe.output == "fp8_scaled"
    if not old and not recipe.keep_1d_scales:
        return Written(tuple(tensors), {}, {})
    made, names = [], {}
    for t in tensors:
        if t.conf is None:  # not quantized
            made.append(t)
            continue
        entries: dict[str, Entry] = {}
        for name, entry in t.entries.items():
            suffix = name.removeprefix(f"{t.layer}.")
            if old and suffix == "comfy_quant":
                continue
            if recipe.keep_1d_scales and suffix in _SCALES and entry[1] == ():
                entry = (entry[0], (1,))
            new = f"{t.layer}.{NEW_NAMES[suffix]}" if old and suffix in NEW_NAMES else name
            entries[new] = entry
            if new != name:
                names[name] = new
        made.append(replace(t, entries=entries))
    if not old:
        return Written(tuple(made), names, {})
    markers, warnings = _markers(made, recipe)
    return Written(tuple(made), names, markers, tuple(warnings))


def _markers(tensors: Sequence[TensorPlan], recipe: Recipe) -> tuple[dict[str, Entry], list[str]]:
    layers = {t.layer: t for t in tensors if t.conf is not None}
    if not layers:
        return {}, []
    dtypes: dict[torch.dtype, str] = {}
    for layer, t in layers.items():
        fmt = _format(t)
        if not holds(fmt) or (t.conf or {}).get("convrot"):
            raise FormatError(
                f"layer {layer!r} is {fmt.id}; output fp8_scaled holds FP8 with plain scales only: "
                "convert it to FP8 too, or choose output comfy_quant"
            )
        dtypes.setdefault(fmt.weight_dtype, layer)
    if len(dtypes) > 1:
        one, other = dtypes.values()
        raise FormatError(
            f"layers {one!r} and {other!r} have different FP8 dtypes; fp8_scaled names one for the "
            "file: choose one of them, or output comfy_quant"
        )
    full = [layer for layer, t in layers.items() if (t.conf or {}).get(FULL)]
    scaled = any(f"{layer}.scale_input" in t.entries for layer, t in layers.items())
    asked = recipe.full_precision_matrix_mult if len(full) in (0, len(layers)) else None
    elements, warnings = marker_elements(layers, full, scaled, asked)
    if torch.float8_e4m3fn not in dtypes:
        warnings.append(NOT_E4M3)
    if recipe.input_scale == "constant":
        warnings.append("ComfyUI takes input scales of 1 for none in this layout")
    several = [x for x, t in layers.items() if _scales(t) > 1]
    warnings += [several_scales(several)] if several else []
    (dtype,) = dtypes
    return dict.fromkeys(marker_names(layers), (dtype, (elements,))), warnings


def _format(t: TensorPlan) -> Format:
    return get_format(t.spec.format if t.spec else str((t.conf or {})["format"]))


def _scales(t: TensorPlan) -> int:
    entry = t.entries.get(f"{t.layer}.scale_weight")
    return 1 if entry is None else math.prod(entry[1])


class WrittenSink:
    """A sink that takes today's names and writes ``entries`` under the file's.

    Args:
        sink: gets the tensors.
        names: the file's name of every tensor that has another one.
        entries: dtype and shape of the file's tensors.
    """

    def __init__(self, sink: Sink, names: Mapping[str, str], entries: Entries) -> None:
        self.sink, self.names, self.entries = sink, names, entries

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a whole tensor, in the file's shape."""
        name = self.names.get(name, name)
        self.sink.write(name, tensor.reshape(self.entries[name][1]))

    def write_rows(self, name: str, start: int, tensor: Tensor) -> None:
        """Write rows from ``start`` on."""
        self.sink.write_rows(self.names.get(name, name), start, tensor)

    def write_bytes(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write raw bytes."""
        self.sink.write_bytes(self.names.get(name, name), offset, data)


def marker(entry: Entry) -> Tensor:
    """A marker's tensor."""
    assert isinstance(entry[0], torch.dtype)
    return torch.zeros(entry[1], dtype=entry[0])

