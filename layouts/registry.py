"""Discovers the formats: each module of ``layouts/formats/`` defines one or more ``Format`` classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

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


def identify(conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], layer: str) -> Format:
    """The format of stored tensors: the JSON names it, and where that is ambiguous shapes decide.

    Args:
        conf: the layer's JSON.
        shapes: shapes of the layer's tensors by suffix.
        layer: its name, for errors.
    """
    name = conf.get("format")
    if not isinstance(name, str) or not name:
        raise FormatError(f"layer {layer!r}: its comfy_quant JSON names no format: {dict(conf)}")
    known = formats()
    exact = [known[name]] if name in known else []
    named = exact + [f for f in known.values() if name in f.aliases and f not in exact]
    if not named:
        raise FormatError(
            f"layer {layer!r} has the unknown format {name!r}; known: {', '.join(known)}. "
            "A newer Roundsmith may read it."
        )
    for fmt in named:
        if fmt.matches(conf, shapes):
            return fmt
    listing = ", ".join(f"{k} {list(v)}" for k, v in shapes.items())
    raise FormatError(
        f"layer {layer!r} says format {name!r}, but its tensors do not fit it: {listing}. "
        "The file is damaged or was written by a tool with another convention."
    )
