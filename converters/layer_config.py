"""Layer configs: a JSON object of patterns and settings, of which the most specific decides.

Files of this form exist for convert-to-quant; its names of settings (``block_size``,
``scaling_mode``, ``simple``) are read too, and keys that start with ``_`` inside an entry are
comments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..errors import RecipeError
from .matching import match_pattern, search_pattern
from .options import Options

DEFAULT = "_default"
Match = Literal["search", "full"]
_LITERALS = 8  # characters that make a pattern with a number a very specific one
_META = re.compile(r"\\.|\[.*?\]|\(.*?\)|[.*+?^${}|\\]")
_BLOCKS = {"float8_e4m3fn": "float8_e4m3fn_blockwise", "int8_tensorwise": "int8_blockwise"}
_ROWS = {"float8_e4m3fn": "float8_e4m3fn_rowwise"}


class LayerEntry(Options):
    """The settings of one entry: a format with its options, or ``skip``."""

    skip: bool = Field(False, description="keep these layers in high precision")

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, entry: Any) -> Any:
        """The names another tool gives these settings."""
        if not isinstance(entry, Mapping):
            raise ValueError(f"an entry is an object of settings, not {entry!r}")
        found = {name: value for name, value in entry.items() if not name.startswith("_")}
        if found.get("format") == "":
            raise ValueError("the format is empty: name one, or set skip to true")
        if "block_size" in found:
            found.setdefault("group_size", found.pop("block_size"))
        if found.pop("simple", False):
            found.setdefault("rounding", "nearest")
        mode = found.pop("scaling_mode", None)
        name = str(found.get("format"))
        if mode in ("block", "block2d"):
            found["format"] = _BLOCKS.get(name, name)
        elif mode == "block3d":
            found["format"] = "float8_e4m3fn_block3d"
        elif mode == "row" and name in _ROWS:
            found["format"] = _ROWS[name]
        elif mode in ("row", "tensor") and name == "int8_tensorwise":
            found["scaling"] = mode
        elif mode not in (None, "row", "tensor"):
            raise ValueError(f"scaling_mode {mode!r} is none of tensor, row, block, block3d")
        return found

    @model_validator(mode="after")
    def _says_something(self) -> LayerEntry:
        if self.skip and self.format is not None:
            raise ValueError(f"both skip and format {self.format!r}: leave one out")
        if not self.skip and self.format is None:
            raise ValueError("no format: name one, or set skip to true")
        return self


def specificity(pattern: str) -> tuple[bool, int]:
    """How specific a pattern is, the larger the more: whether it has a digit and at least eight
    literal characters, then how many literal characters it has."""
    literals = len(_META.sub("", pattern))
    numbered = re.search(r"\d|\\d", pattern) is not None
    return numbered and literals >= _LITERALS, literals


def most_specific(
    config: Mapping[str, LayerEntry], layer: str, match: Match
) -> tuple[str, LayerEntry] | None:
    """The entry that decides about ``layer`` and its pattern; of equally specific ones the first.

    ``_default`` is not among them.
    """
    fits = match_pattern if match == "full" else search_pattern
    found = [(p, e) for p, e in config.items() if p != DEFAULT and fits(p, layer)]
    return max(found, key=lambda item: specificity(item[0]), default=None)


def load_layer_config(path: str | Path) -> dict[str, Any]:
    """Read a layer config's JSON. Raises :class:`RecipeError` naming the file."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read as a layer config: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a layer config is a JSON object, not {type(data).__name__}")
    return {k: v for k, v in data.items() if k == DEFAULT or not k.startswith("_")}
