"""FP8 with one scale an output row: ``float8_e4m3fn_rowwise``.

Storage of a layer ``L`` with weight ``[M, N]``::

    L.weight         F8_E4M3  [M, N]
    L.weight_scale   F32      [M]

Forward: ``W[m, n] = weight[m, n] · weight_scale[m]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..candidates import Candidate
from ..format import FLOAT32_SCALE, Format, Parts
from ..geometries import PER_ROW, Geometry
from ..grids import E4M3
from ..spec import Spec


class Float8Rowwise(Format):
    """E4M3 per row."""

    id = "float8_e4m3fn_rowwise"
    candidates = (Candidate({}, 39.2, 33.2, (8, 9)),)
    title = "FP8 E4M3, per row"
    aliases = ("fp8_rowwise", "float8_e4m3fn")
    grid = E4M3
    search_pays = True
    hardware = "NVIDIA Ada (RTX 40) and newer"
    own_layout = "RoundsmithFloat8RowwiseLayout"

    def geometry(self, spec: Spec) -> Geometry:
        return PER_ROW

    def scale_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        return (padded[0],)

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        rows = shapes["weight"][0]
        return len(shapes["weight"]) == 2 and shapes.get(FLOAT32_SCALE) in ((rows,), (rows, 1))

    def normalise(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """A column ``[M, 1]`` becomes ``[M]``."""
        return {**parts, FLOAT32_SCALE: parts[FLOAT32_SCALE].float().flatten()}
