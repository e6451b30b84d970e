"""What is probably wrong with a file: dead scales, saturated codes, orphans, contradictions."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping

from ..corrections.input_scales import LARGEST, SMALLEST
from ..editing.scalars import ORPHANED
from ..source import Source
from ..stored import StoredLayer
from .inspection import LayerInfo, Suspicion

_SATURATED = 0.02  # share of codes at the maximum, above what one a block makes
_BLOCK_SHARE = 4  # codes at the maximum a block may have
_EIGHT_BITS = 127.0  # grids with less in them have more codes at their ends


def of_layer(layer: LayerInfo) -> Iterator[Suspicion]:
    """What a quantized layer's numbers say."""
    scales, codes, name = layer.scales, layer.codes, layer.name
    if scales is not None:
        for count, what in (
            (scales.broken, "NaN or infinite"),
            (scales.negative, "negative"),
        ):
            if count:
                yield Suspicion("scales", name, f"{count} of {scales.count} scales are {what}")
        dead = codes is None or codes.zero < 1
        if scales.zero and dead:
            yield Suspicion(
                "dead scales", name, f"{scales.zero} of {scales.count} scales are zero: so is "
                "what they multiply"
            )  # fmt: skip
    if codes is not None:
        if codes.broken:
            yield Suspicion("codes", name, f"{codes.broken} of {codes.seen} codes are NaN")
        if codes.zero == 1:
            yield Suspicion("codes", name, f"all {codes.seen} codes seen are zero")
        elif codes.at_max > _expected(layer):
            yield Suspicion(
                "saturated codes", name, f"{codes.at_max:.1%} of its codes are at the grid's "
                "maximum: clipped by a scale that is too small"
            )  # fmt: skip
    scale = layer.input_scale
    if scale is not None and not SMALLEST <= scale <= LARGEST:
        yield Suspicion("input scale", name, f"its input scale is {scale:g}")


def _expected(layer: LayerInfo) -> float:
    """Share of codes at the maximum that scales by blocks' largest magnitudes can explain."""
    scales = layer.scales.count if layer.scales is not None else 1
    return _SATURATED + _BLOCK_SHARE * scales / max(math.prod(layer.shape), 1)


def orphans(
    source: Source, layers: Mapping[str, StoredLayer], unreadable: Container[str] = ()
) -> Iterator[Suspicion]:
    """Scales and settings that belong to no quantized layer."""
    used = {
        name
        for stored in layers.values()
        for suffix, name in stored.parts.items()
        if suffix in stored.format.part_names
    }
    for name in source.tensors:
        layer, _, suffix = name.rpartition(".")
        if suffix == "comfy_quant" and f"{layer}.weight" not in source.tensors:
            yield Suspicion("orphan", name, f"there is no {layer}.weight")
        if suffix not in ORPHANED or name in used or layer in unreadable:
            continue
        if f"{layer}.weight" not in source.tensors:
            yield Suspicion("orphan", name, f"there is no {layer}.weight")
        elif layer in layers:
            yield Suspicion("orphan", name, f"{layers[layer].format.id} has no such tensor")
        else:
            yield Suspicion("orphan", name, f"{layer} is not quantized")
