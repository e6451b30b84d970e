"""Which layers an error LoRA corrects, and how much of their error."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from ..matching import check_pattern, search_pattern
from ..strict import Strict

_NARROW, _WIDE = 3.0, 4.0
_ATTENTION = ("qkv", "attn", "proj")
_INDEX = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


class ErrorLoraOptions(Strict):
    """Settings of an error LoRA.

    ``target`` decides alone where it is given. Else a layer must pass ``depth`` and ``aspect``;
    ``layers`` says what they are where they are not given: ``all`` lets every quantized layer pass;
    ``selected`` takes the first block (depth 1), and of it layers whose longer side is less than
    three times the shorter one, up to four times where the block's index is 0 or the name says
    attention (qkv, attn, proj).
    """

    rank: int = Field(32, ge=1, le=4096, description="of the correction of each layer")
    layers: Literal["all", "selected"] = Field("all", description="every layer, or a few by shape")
    target: str | None = Field(None, description="only layers in whose name this regex is found")
    depth: int | None = Field(None, ge=1, description="only blocks with an index below this")
    aspect: float | None = Field(
        None, ge=1, description="only layers whose longer side is at most so many shorter ones"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the sketch large matrices are factored by")
    device: str = Field("auto", description="where matrices are factored: auto, cpu, cuda, ...")

    @field_validator("target")
    @classmethod
    def _check_target(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else check_pattern(pattern)

    def why_not(self, layer: str, shape: tuple[int, ...]) -> str:
        """Why a layer of this name and shape (out, in) is left out; "" where it is corrected.

        Raises :class:`RecipeError` for a target that takes too long to match.
        """
        if self.target is not None:
            return "" if search_pattern(self.target, layer) else "not a target"
        depth = 1 if self.depth is None and self.layers == "selected" else self.depth
        block = block_index(layer)
        if depth is not None and (block or 0) >= depth:
            return f"block {block}, depth {depth}"
        ratio = max(shape) / max(min(shape), 1)
        if self.aspect is not None:
            return "" if ratio <= self.aspect else f"aspect ratio {ratio:.1f}"
        if self.layers == "all" or ratio < _NARROW:
            return ""
        first = block == 0 or any(word in layer for word in _ATTENTION)
        return "" if ratio <= _WIDE and first else f"aspect ratio {ratio:.1f}"


def block_index(layer: str) -> int | None:
    """The first number among the parts of a layer's name: 3 in ``double_blocks.3.img_mlp.0``."""
    found = _INDEX.search(layer)
    return int(found[1]) if found else None
