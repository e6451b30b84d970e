"""Discovers the formats: each module of ``layouts/formats/`` defines one or more ``Format``
classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch

from ..errors import FormatError
from . import formats as _package
from .format import Format


@cache
def formats() -> dict[str, Format]:
    """Every format by id, in the order of their files' names."""
    found: dict[str, Format] = {}
    for module in sorted(m.name for m in iter_modules(_package.__path__)):
        for value in vars(import_module(f".{module}", _package.__name__)).values():
            if isinstance(value, type) and issubclass(value, Format) and "id" in vars(value):
                found[value.id] = value()
    return found


def get_format(name: str) -> Format:
    """The format called ``name`` (its id, or a name people use). Raises :class:`FormatError`."""
    known = formats()
    if name in known:
        return known[name]
    for fmt in known.values():
        if name in fmt.aliases:
            return fmt
    raise FormatError(f"unknown format {name!r}; known: {', '.join(known)}")


def identify(
    conf: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    layer: str,
) -> Format:
    """The format of stored tensors.

    The JSON names it; where the tensors do not fit that name, shapes decide among the formats that
    keep one code of this dtype a weight: converters label row scales "blockwise", or block scales
    by the plain format's name.

    Args:
        conf: the layer's JSON.
        shapes: shapes of the layer's tensors by suffix, ``weight`` among them.
        dtype: dtype of its ``weight``.
        layer: its name, for errors.
    """
    name = conf.get("format")
    if not isinstance(name, str) or not name:
        raise FormatError(f"layer {layer!r}: its comfy_quant JSON names no format: {dict(conf)}")
    known = formats()
    if name not in known and not any(name in fmt.aliases for fmt in known.values()):
        raise FormatError(
            f"layer {layer!r} has the unknown format {name!r}; known: {', '.join(known)}. "
            "A newer Roundsmith may read it."
        )
    ranked = sorted(known.values(), key=lambda fmt: (fmt.id != name, name not in fmt.aliases))
    for fmt in ranked:
        named = fmt.id == name or name in fmt.aliases
        if fmt.weight_dtype == dtype and (named or fmt.plain) and fmt.matches(conf, shapes):
            return fmt
    listing = ", ".join(f"{k} {list(v)}" for k, v in shapes.items())
    raise FormatError(
        f"layer {layer!r} says format {name!r}, but its tensors do not fit it: weight is {dtype}, "
        f"shapes {listing}. The file is damaged or was written by a tool with another convention."
    )
