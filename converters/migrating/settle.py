"""What a layer is where its scales' shape could mean several things."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...checkpoints import Checkpoint
from ...errors import FormatError
from ...layouts import Format, formats, get_format
from ...layouts.format import FLOAT32_SCALE
from ..matching import search_pattern
from ..stored import StoredLayer
from .options import MigrateOptions


def settle(
    source: Checkpoint, layer: str, stored: StoredLayer, options: MigrateOptions
) -> StoredLayer:
    """The layer as the options say it is; what its shapes tell stands where they say nothing.

    Raises :class:`FormatError` where the tensors cannot be what the options say.
    """
    if options.layers is not None and not search_pattern(options.layers, layer):
        return stored
    shapes = {suffix: tuple(source.tensors[name].shape) for suffix, name in stored.parts.items()}
    dtype = stored.format.weight_dtype
    if options.format is not None:
        asked = get_format(options.format)
        if asked.weight_dtype != dtype:
            return stored  # of other codes: not ambiguous
        if not asked.matches({"format": asked.id}, shapes):
            raise FormatError(
                f"layer {layer!r}: format {asked.id} does not fit its tensors, weight "
                f"{list(shapes['weight'])} with scales {list(shapes.get(FLOAT32_SCALE, ()))}, "
                f"which are {stored.format.id}: restrict it with layers, or leave it out"
            )
        stored = _as(stored, asked, shapes)
    if options.block_size is not None:
        stored = _blocked(stored, shapes, layer, options.block_size)
    return stored


def _blocked(
    stored: StoredLayer, shapes: dict[str, tuple[int, ...]], layer: str, size: int
) -> StoredLayer:
    told = stored.format.group_size_of(shapes)
    if told is not None and told != size:
        raise FormatError(
            f"layer {layer!r}: its blocks are {told}, by its scales' shape, not {size}: restrict "
            "block_size with layers, or leave it out"
        )
    scale = shapes.get(FLOAT32_SCALE, ())
    one_block = len(scale) > 1 and math.prod(scale) == 1 and shapes["weight"] == (size, size)
    if told is not None or not one_block:
        return stored
    fits = (
        fmt
        for fmt in formats().values()
        if fmt.plain
        and fmt.group_sizes
        and fmt.weight_dtype == stored.format.weight_dtype
        and fmt.matches({"format": fmt.id}, shapes)
        and fmt.group_size_of(shapes) == size
    )
    found = next(fits, None)
    return stored if found is None else _as(stored, found, shapes)


def _as(stored: StoredLayer, fmt: Format, shapes: dict[str, tuple[int, ...]]) -> StoredLayer:
    conf: dict[str, Any] = {**stored.conf, "format": fmt.id}
    conf.pop("group_size", None)
    group = fmt.group_size_of(shapes)
    if group is not None:
        conf["group_size"] = group
    return replace(stored, conf=conf, format=fmt)
