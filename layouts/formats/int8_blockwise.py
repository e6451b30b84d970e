"""INT8 with one scale a square block: ``int8_blockwise``.

Storage of a layer ``L`` with weight ``[M, N]`` and block size ``b`` (128 or 64, dividing both)::

    L.weight         I8   [M, N]
    L.weight_scale   F32  [M/b, N/b]
    L.input_scale    F32  []  always 1.0: activations are quantized at run time, by token and block

Forward: ``W[m, n] = weight[m, n] · weight_scale[m // b, n // b]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..candidates import Candidate
from ..format import FLOAT32_SCALE, Format, Storage
from ..geometries import Geometry, Scales
from ..grids import INT8
from ..spec import Spec
from .float8_blockwise import square_blocks


class Int8Blockwise(Format):
    """INT8 per square block."""

    id = "int8_blockwise"
    candidates = (Candidate({}, 42.9, 38.1, (7, 5)),)
    title = "INT8, per 2-D block"
    aliases = ("int8_block",)
    grid = INT8
    hardware = "NVIDIA Turing (RTX 20) and newer"
    group_sizes = (128, 64)
    own_layout = "RoundsmithInt8BlockwiseLayout"

    def geometry(self, spec: Spec) -> Geometry:
        return Geometry(spec.group_size, spec.group_size)

    def scale_storage(self, spec: Spec, padded: tuple[int, int]) -> Storage:
        return {**super().scale_storage(spec, padded), "input_scale": (torch.float32, ())}

    def pack_scales(self, scales: Scales, spec: Spec, padded: tuple[int, int]) -> dict[str, Tensor]:
        one = torch.ones((), device=scales.block.device)
        return {**super().pack_scales(scales, spec, padded), "input_scale": one}

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return square_blocks(shapes["weight"], shapes.get(FLOAT32_SCALE))
