"""INT8 with one scale a row block: ``int8_lodewise``.

Storage of a layer ``L`` with weight ``[M, N]`` and block size ``b`` dividing ``N``::

    L.weight         I8   [M, N]
    L.weight_scale   F32  [M, N/b]

Forward: ``W[m, n] = weight[m, n] · weight_scale[m, n // b]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..candidates import Candidate
from ..format import FLOAT32_SCALE, Format
from ..geometries import Geometry
from ..grids import INT8
from ..spec import Spec


class Int8Lodewise(Format):
    """INT8 per row block."""

    id = "int8_lodewise"
    candidates = (Candidate({}, 49.6, 40.1, (7, 5)),)
    title = "INT8, per row block"
    aliases = ("int8_blockwise",)
    grid = INT8
    hardware = "NVIDIA Turing (RTX 20) and newer"
    group_sizes = (128, 64)
    own_layout = "RoundsmithInt8LodewiseLayout"

    def geometry(self, spec: Spec) -> Geometry:
        return Geometry(1, spec.group_size)

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        weight, scale = shapes["weight"], shapes.get(FLOAT32_SCALE, ())
        if len(weight) != 2 or len(scale) != 2 or 0 in scale:
            return False
        if scale[1] == 1 and conf.get("format") != self.id:
            return False  # one scale a row, which stock ComfyUI reads as int8_tensorwise
        return scale[0] == weight[0] and weight[1] % scale[1] == 0
