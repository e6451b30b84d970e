"""FP8 with one scale a row block: ``float8_e4m3fn_block3d``.

Storage of a layer ``L`` with weight ``[M, N]`` and block size ``b`` dividing ``N``::

    L.weight         F8_E4M3  [M, N]
    L.weight_scale   F32      [M, N/b, 1]

Forward: ``W[m, n] = weight[m, n] · weight_scale[m, n // b, 0]``. Some files carry the plain format
name ``float8_e4m3fn`` with these shapes; the shapes decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..candidates import Candidate
from ..format import FLOAT32_SCALE, Format
from ..geometries import Geometry
from ..grids import E4M3
from ..spec import Spec


class Float8Block3D(Format):
    """E4M3 per row block."""

    id = "float8_e4m3fn_block3d"
    candidates = (Candidate({}, 40.1, 34.2, (8, 9)),)
    title = "FP8 E4M3, per row block"
    aliases = ("fp8_block3d", "float8_e4m3fn", "float8_e4m3fn_blockwise")
    grid = E4M3
    search_pays = True
    hardware = "NVIDIA Ada (RTX 40) and newer"
    group_sizes = (64, 128)
    own_layout = "RoundsmithFloat8Block3DLayout"

    def geometry(self, spec: Spec) -> Geometry:
        return Geometry(1, spec.group_size)

    def scale_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        return (*self.geometry(spec).grid_shape(padded), 1)

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        weight, scale = shapes["weight"], shapes.get(FLOAT32_SCALE, ())
        if len(weight) != 2 or len(scale) != 3 or 0 in scale:
            return False
        return (scale[0], scale[2]) == (weight[0], 1) and weight[1] % scale[1] == 0
