"""Which loaders read a file, and why others do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...checkpoints import Checkpoint, QuantizedLayers
from ...layouts.format import FLOAT32_SCALE
from ..stored import StoredLayer, empty_parts


def why_not_stock(
    source: Checkpoint, described: QuantizedLayers, layers: Mapping[str, StoredLayer]
) -> tuple[str, ...]:
    """Why stock ComfyUI does not load the file, or gets other weights from it; empty: it does."""
    found: dict[str, list[str]] = {}
    for layer, stored in layers.items():
        reason = _reason(source, described, layer, stored)
        if reason:
            found.setdefault(reason, []).append(layer)
    reasons = [f"{_count(names)}: {reason}" for reason, names in found.items()]
    exponents = [n for n, info in source.tensors.items() if info.dtype_name == "F8_E8M0"]
    if exponents:
        reasons.append(f"{_count(exponents)}: ComfyUI's reader lacks the dtype F8_E8M0")
    if len(source.files) > 1:
        reasons.append(f"it is in {len(source.files)} shards: convert it into one file")
    return tuple(reasons)


def _reason(
    source: Checkpoint, described: QuantizedLayers, layer: str, stored: StoredLayer
) -> str:
    if not stored.format.stock:
        return stored.format.stock_note or f"{stored.format.id} is Roundsmith's"
    shape = tuple(source.tensors[stored.parts[FLOAT32_SCALE]].shape) if (
        FLOAT32_SCALE in stored.parts) else ()  # fmt: skip
    if layer not in described.layers:
        old = stored.parts.get(FLOAT32_SCALE, "").endswith(".scale_weight")
        if not old:
            return "nothing in the file says that it is quantized (edit writes it)"
        if stored.format.grid.dtype.is_floating_point is False:
            return "legacy INT8 (migrate converts it)"
        return ""
    if described.layers[layer].get("format") != stored.format.id:
        return f"labelled {described.layers[layer].get('format')!r} (migrate labels it rightly)"
    repaired = stored.format.normalise(empty_parts(source, stored.parts), stored.conf)
    if len(shape) == 1 and shape[0] > 1 and tuple(repaired[FLOAT32_SCALE].shape) != shape:
        return "its scales [M] would be taken for columns' (migrate stores [M, 1])"
    return ""


def _count(names: Iterable[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{len(names)} layers ({names[0]}, …)"
