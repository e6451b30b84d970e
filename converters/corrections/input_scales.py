"""Input scales: what a layer's inputs are divided by before they are rounded to a grid.

``input_scale`` is the percentile of ``|x|`` over the layer's *inputs*, over the grid's largest
value: 448 for FP8 E4M3. Inputs beyond it are clipped. Imported scales are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ...checkpoints import Checkpoint
from ...checkpoints.strict_json import parse_json
from ...errors import CheckpointError
from .names import LayerNames

SMALLEST, LARGEST = 1e-8, 1e5
"""Scales beyond these are mistakes: inputs up to 1e-6, or from a billion on."""

_SUFFIXES = (".input_scale", ".scale_input")  # the second: legacy fp8_scaled
_ADVICE = f"an input scale is a number from {SMALLEST:g} to {LARGEST:g}"


class _Percentile(Protocol):
    def percentile(self, p: float, /) -> float: ...


def input_scale(record: _Percentile, percentile: float = 99.9, grid_max: float = 448.0) -> float:
    """A layer's input scale from its measured inputs.

    Args:
        record: the layer's statistics.
        percentile: 0 to 100; the magnitude that so many of the inputs do not exceed; 100: the
            largest.
        grid_max: largest value of the grid that inputs are rounded to.

    Returns:
        The scale; 0.0 where all inputs were zero, which is no scale.
    """
    return record.percentile(percentile) / grid_max


def check_scale(value: object, where: str, key: str) -> float:
    """``value`` as a scale. Raises CheckpointError naming the file ``where`` and ``key``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if SMALLEST <= number <= LARGEST:  # not NaN either
            return number
    shown = repr(value)[:40]
    raise CheckpointError(f"{where}: {key!r} is {shown}; {_ADVICE}: mend or remove the entry")


def read_input_scales(path: str | Path) -> dict[str, float]:
    """Input scales of another file, by layer, as the file spells its names.

    Args:
        path: JSON, ``{"double_blocks.0.img_attn.qkv": 0.015}``, keys with or without
            ``.input_scale``; or safetensors, whose ``<layer>.input_scale`` tensors are read.

    Raises:
        CheckpointError: naming the file and the key: a file that cannot be read or holds no scale,
            a value that is not a number from 1e-8 to 1e5, a layer twice.
    """
    path = Path(path)
    if path.suffix.lower() == ".json" and not path.name.lower().endswith(".index.json"):
        found = _from_json(path)
    else:
        found = _from_checkpoint(path)
    if not found:
        raise CheckpointError(
            f"{path} holds no input scales: give JSON like "
            '{"layer": 0.015}, or a safetensors file with "layer.input_scale" tensors'
        )
    return found


def match_scales(
    given: Mapping[str, float], names: LayerNames, where: str | Path
) -> tuple[dict[str, float], list[str]]:
    """Input scales by a model's own names of its layers, and warnings.

    Args:
        given: scales as another file spells its names.
        names: of the model.
        where: that file, for messages.

    Raises:
        CheckpointError: none of the names is one of the model's, or two are of one layer and
            differ.
    """
    found: dict[str, float] = {}
    unknown = []
    for key, scale in given.items():
        layer = names.find(key)
        if layer is None:
            unknown.append(key)
        elif found.setdefault(layer, scale) != scale:
            raise CheckpointError(
                f"{where}: {key!r} is {scale:g}, another spelling of {layer!r} says "
                f"{found[layer]:g}: remove one entry"
            )
    if not found:
        raise CheckpointError(
            f"{where}: none of its {len(unknown)} layers is a layer here "
            f"({unknown[0] if unknown else 'it is empty'}): it belongs to another model"
        )
    if not unknown:
        return found, []
    named = ", ".join(unknown[:3])
    return found, [f"{where}: {len(unknown)} scales are of no layer here ({named})"]


def _from_json(path: Path) -> dict[str, float]:
    try:
        content = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(content).__name__}; an object of scales by layer is "
            'expected: {"layer": 0.015}'
        )
    found: dict[str, float] = {}
    for key, value in content.items():
        layer = _layer(key)
        if layer in found:
            raise CheckpointError(f"{path}: {key!r} names layer {layer!r} twice: remove one entry")
        found[layer] = check_scale(value, str(path), key)
    return found


def _from_checkpoint(path: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    with Checkpoint.open(path) as source:
        for name, info in source.tensors.items():
            if not name.endswith(_SUFFIXES):
                continue
            elements = math.prod(info.shape)
            if info.dtype is None or not info.dtype.is_floating_point or elements != 1:
                raise CheckpointError(
                    f"{path}: {name!r} is {info.dtype_name} with {elements} elements; an input "
                    "scale is one floating number: use another file"
                )
            value = float(source.read(name).reshape(()))
            found[_layer(name)] = check_scale(value, str(path), name)
    return found


def _layer(key: str) -> str:
    suffix = next((s for s in _SUFFIXES if key.endswith(s)), "")
    return key.removesuffix(suffix)
