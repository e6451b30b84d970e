"""FP8 with one scale a square block: ``float8_e4m3fn_blockwise``.

Storage of a layer ``L`` with weight ``[M, N]`` and block size ``b`` (64 or 128, dividing both)::

    L.weight         F8_E4M3  [M, N]
    L.weight_scale   F32      [M/b, N/b]

Forward: ``W[m, n] = weight[m, n] · weight_scale[m // b, n // b]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..candidates import Candidate
from ..format import FLOAT32_SCALE, Format
from ..geometries import Geometry
from ..grids import E4M3
from ..spec import Spec


class Float8Blockwise(Format):
    """E4M3 per square block."""

    id = "float8_e4m3fn_blockwise"
    candidates = (Candidate({}, 38.8, 33.8, (8, 9)),)
    title = "FP8 E4M3, per 2-D block"
    aliases = ("fp8_blockwise", "block2d", "float8_e4m3fn")
    grid = E4M3
    hardware = "NVIDIA Ada (RTX 40) and newer"
    group_sizes = (64, 128)
    own_layout = "RoundsmithFloat8BlockwiseLayout"

    def geometry(self, spec: Spec) -> Geometry:
        return Geometry(spec.group_size, spec.group_size)

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return square_blocks(shapes["weight"], shapes.get(FLOAT32_SCALE))


def square_blocks(weight: tuple[int, ...], scale: tuple[int, ...] | None) -> bool:
    """Whether ``scale`` is a grid of equal square blocks over ``weight``."""
    if scale is None or len(scale) != 2 or len(weight) != 2 or 0 in scale:
        return False
    if weight[0] % scale[0] or weight[1] % scale[1]:
        return False
    return weight[0] // scale[0] == weight[1] // scale[1]
