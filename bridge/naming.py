"""Names of new files: patterns such as ``{name}-{format}``, filled in where they are used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from ..converters import Recipe
from ..errors import CheckpointError

PLACEHOLDERS = ("name", "format", "rounding", "date")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def fill_pattern(pattern: str, values: Mapping[str, str]) -> str:
    """``pattern`` with each ``{placeholder}`` replaced; ``{date}`` is today's, as 2026-01-31.

    The result is a name like any other: whoever makes a path of it checks it. Raises
    CheckpointError for a placeholder that is not among :data:`PLACEHOLDERS`.
    """
    known = {"date": date.today().isoformat(), **values}

    def value(match: re.Match[str]) -> str:
        if match[1] not in known:
            shown = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise CheckpointError(f"file name {pattern!r}: {match[0]} is not one of {shown}")
        return known[match[1]]

    return _PLACEHOLDER.sub(value, pattern)


def new_name(pattern: str, source: str, made: str, rounding: str) -> str:
    """The name of a file made from another.

    Args:
        pattern: what the person asked for; empty for ``{name}-{format}``.
        source: a choice of :func:`~.paths.list_sources`; ``{name}`` is its name in its folder.
        made: what ``{format}`` stands for.
        rounding: what ``{rounding}`` stands for.
    """
    stem = Path(source.partition("/")[2].replace("\\", "/")).with_suffix("").as_posix()
    values = {"name": stem, "format": made, "rounding": rounding}
    return fill_pattern(pattern.strip() or "{name}-{format}", values)


def model_prefix(prefix: str, patcher: Any) -> str:
    """A saver's prefix for a loaded model: named by its file, or ``roundsmith``."""
    text = getattr(patcher.model, "roundsmith_recipe", None)
    recipe = Recipe.from_json(text) if text else None
    values = {
        "name": name_of(patcher) or "roundsmith",
        "format": label(recipe) if recipe else "copy",
        "rounding": recipe.rounding if recipe else "unchanged",
    }
    return fill_pattern(prefix, values)


def name_of(patcher: Any) -> str | None:
    """The name of the file a MODEL or CLIP was loaded from, if that is known."""
    kept = getattr(patcher.model, "roundsmith_name", None)
    if kept:
        return str(kept)
    init = getattr(patcher, "cached_patcher_init", None)
    path = init[1][0] if init and len(init) > 1 and init[1] else None
    path = path[0] if isinstance(path, (list, tuple)) and path else path
    return Path(path).stem if isinstance(path, (str, Path)) else None


def label(recipe: Recipe) -> str:
    """A recipe's format with its options, as part of a file's name."""
    rotated = "convrot" if recipe.convrot else None
    parts = (recipe.format, recipe.variant, recipe.scaling, recipe.group_size, rotated)
    return "-".join(str(part) for part in parts if part)
