"""What an earlier run measured of a model's layers, from the details it left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..converters.suggestion import expected_snr, this_device
from ..errors import RoundsmithError
from ..layouts import Spec, formats
from . import results

_OUTPUTS = ("executed_snr", "output_snr")


def measured_offsets(report: str, layers: Sequence[str]) -> dict[str, float]:
    """How many dB each layer was better than its format lets expect, by the names in ``layers``.

    Of a run without statistics only the layers' differences count, because the error of weights
    says nothing of the level. Empty where the details are gone.
    """
    try:
        found = _offsets(report) if report else {}
    except RoundsmithError:
        return {}
    return _renamed(found, layers)


@lru_cache(maxsize=4)
def _offsets(report: str) -> dict[str, float]:
    device = this_device()
    outputs: dict[str, float] = {}
    weights: dict[str, float] = {}
    details = json.loads(results.kept(report))
    for layer in details.get("rows") or details.get("layers") or ():
        spec = _spec(layer)
        expected = None if spec is None else expected_snr(spec, device)
        if expected is None:
            continue
        level = next((layer[key] for key in _OUTPUTS if layer.get(key) is not None), None)
        if level is not None:
            outputs[layer["name"]] = level - expected
        elif layer.get("weight_snr") is not None:
            weights[layer["name"]] = layer["weight_snr"] - expected
    if outputs:
        return outputs
    mean = sum(weights.values()) / len(weights) if weights else 0.0
    return {name: value - mean for name, value in weights.items()}


def _spec(layer: Mapping[str, Any]) -> Spec | None:
    """What a row of a report was stored as."""
    words = str(layer.get("stored_as") or "").split()
    fmt = formats().get(words[0]) if words else None
    if fmt is None:
        return None
    rotation = words[words.index("convrot") + 1] if "convrot" in words[:-1] else None
    return Spec(
        fmt.id,
        variant=next((word for word in words if word in fmt.variants), None),
        group_size=fmt.group_sizes[0] if fmt.group_sizes else None,
        convrot=int(rotation) if rotation else None,
    )


def _renamed(found: Mapping[str, float], layers: Sequence[str]) -> dict[str, float]:
    """The values by the names of a file, whose layers may carry a prefix, as those of a model in
    memory may."""
    known = set(layers)
    for name in found:
        for layer in layers:
            if name == layer or layer.endswith(f".{name}"):
                prefix = layer[: len(layer) - len(name)]
                return {prefix + n: v for n, v in found.items() if prefix + n in known}
            if name.endswith(f".{layer}"):
                cut = len(name) - len(layer)
                return {n[cut:]: v for n, v in found.items() if n[cut:] in known}
    return {}
