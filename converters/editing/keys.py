"""What a layer's JSON may say: types of the keys, and agreement with the layer's tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import FormatError, RecipeError

if TYPE_CHECKING:
    from ..source import Source

_TABLE = 16  # values of a four-bit codebook
_TABLES = ("shape", "quant_map", "quant_type", "blocksize")

STRUCTURAL = frozenset(
    {"format", "group_size", "orig_shape", "convrot", "convrot_groupsize", "linear_dtype", *_TABLES}
)
"""Keys that say how codes are read: a layer must still fit its tensors after a change of these."""

MEANING = frozenset(
    {"format", "convrot", "convrot_groupsize", "orig_shape", "linear_dtype", *_TABLES}
)
"""Those of them that tensors' shapes do not tell."""


def check_keys(conf: Mapping[str, Any], touched: Collection[str], layer: str) -> None:
    """Raise :class:`RecipeError` for a touched key whose value no reader takes."""
    for key in touched:
        check = _CHECKS.get(key)
        if key in conf and check is not None:
            problem = check(conf[key])
            if problem:
                raise RecipeError(f"layer {layer!r}: {key} is {conf[key]!r}; {problem}")


def check_fit(
    source: Source, parts: Mapping[str, str], conf: Mapping[str, Any], layer: str
) -> None:
    """Raise :class:`FormatError` where a layer's tensors are not what its JSON says.

    Args:
        source: the file.
        parts: names of the layer's tensors by suffix, in today's spelling.
        conf: its JSON.
        layer: its name, for errors.
    """
    from ...layouts import get_format, identify
    from ..stored import empty_parts

    asked = get_format(str(conf.get("format")))
    shapes = {suffix: tuple(source.tensors[name].shape) for suffix, name in parts.items()}
    found = identify(conf, shapes, source.tensors[parts["weight"]].dtype, layer)
    if found is not asked:
        raise FormatError(
            f"layer {layer!r}: its tensors are {found.id}, not {asked.id}; codes are not converted "
            f"by an edit: quantize again, or set format to {found.id}"
        )
    try:
        empty = found.normalise(empty_parts(source, parts), conf)
    except FormatError as error:
        raise FormatError(f"layer {layer!r}: {error}") from error
    if conf.get("convrot") and not (found.rotates or found.always_rotates):
        raise FormatError(
            f"layer {layer!r}: {found.id} is never rotated: leave convrot out, or restrict the "
            "edit to layers that are"
        )
    size = conf.get("group_size")
    if size is not None and found.group_sizes:
        told = found.group_size_of(shapes)
        if told is not None and told != size:
            raise FormatError(
                f"layer {layer!r}: group_size {size} contradicts its tensors, whose blocks are "
                f"{told}: leave it out, or restrict the edit to other layers"
            )
    shape = conf.get("orig_shape")
    if shape is not None and list(found.orig_shape(empty, conf)) != list(shape):
        raise FormatError(
            f"layer {layer!r}: orig_shape {shape} does not fit its tensors, "
            f"{list(found.orig_shape(empty, {**conf, 'orig_shape': None}))}"
        )


def _is_name(value: Any) -> str:
    from ...layouts import get_format

    if not isinstance(value, str):
        return "a format's name is text"
    try:
        name = get_format(value).id
    except FormatError as error:
        return str(error)
    return "" if name == value else f"loaders know it as {name}"


def _is_flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "it is true or false"


def _is_size(value: Any) -> str:
    return "" if type(value) is int and value > 0 else "it is a whole number above 0"


def _is_group(value: Any) -> str:
    from ...layouts.transforms import GROUP_SIZES

    legal = type(value) is int and value in GROUP_SIZES
    return "" if legal else f"it is one of {', '.join(map(str, GROUP_SIZES))}"


def _is_shape(value: Any) -> str:
    legal = isinstance(value, list) and len(value) >= 1 and not any(map(_is_size, value))
    return "" if legal else "a shape is a list of whole numbers above 0"


def _is_dtype(value: Any) -> str:
    import torch

    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
    return "" if isinstance(found, torch.dtype) else "a dtype is text like torch.bfloat16"


def _is_text(value: Any) -> str:
    return "" if isinstance(value, str) and value else "it is text"


def _is_numbers(value: Any) -> str:
    legal = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    table = legal and len(value) == _TABLE and all(map(math.isfinite, value)) and any(value)
    return "" if table else f"it is a list of {_TABLE} finite numbers, not all zero"


def _is_for_no_file(value: Any) -> str:
    return "no file has it: roundsmith migrate brings layers into another form"


_CHECKS = {
    "form": _is_for_no_file,
    "format": _is_name,
    "full_precision_matrix_mult": _is_flag,
    "per_row": _is_flag,
    "convrot": _is_flag,
    "convrot_groupsize": _is_group,
    "group_size": _is_size,
    "blocksize": _is_size,
    "orig_shape": _is_shape,
    "shape": _is_shape,
    "orig_dtype": _is_dtype,
    "dtype": _is_text,
    "linear_dtype": _is_text,
    "quant_type": _is_text,
    "quant_map": _is_numbers,
}

KNOWN = frozenset(_CHECKS)
"""Keys that some reader knows."""
