"""MXFP8, 8-bit floats under power-of-two block scales: ``mxfp8``.

Storage of a layer ``L`` with weight ``[M, N]``, padded to multiples of 32 (``Mp, Np``)::

    L.weight         F8_E4M3  [Mp, Np]
    L.weight_scale   U8       [⌈Mp⌉128, ⌈Np/32⌉4]   E8M0 exponents, one a row and 32 columns,
                                                    in cuBLAS's tiled layout; 0 for a zero block

Forward: ``W[m, n] = weight[m, n] · 2^(weight_scale[m, n // 32] − 127)``. The exponent is
``ceil(log2(absmax / 448)) + 127``. (OCP Microscaling Formats v1.0.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..candidates import Candidate
from ..format import Format, Parts, Storage
from ..geometries import POWERS_OF_TWO, Geometry, Scales
from ..grids import E4M3
from ..packing import block_scales, blocked_shape, from_e8m0, to_e8m0, unblock_scales
from ..spec import Spec

_GROUP = 32


class MXFP8(Format):
    """E4M3 under E8M0 block scales."""

    id = "mxfp8"
    candidates: ClassVar[tuple[Candidate, ...]] = (Candidate({}, 38.6, 32.0, (10, 0)),)
    title = "MXFP8"
    grid = E4M3
    stock = True
    core_quantizes_input = True
    hardware = "NVIDIA Blackwell (RTX 50)"
    padding = (32, 32)
    layout_names: ClassVar[tuple[str, ...]] = ("TensorCoreMXFP8Layout",)

    def geometry(self, spec: Spec) -> Geometry:
        return Geometry(1, _GROUP, POWERS_OF_TWO)

    def scale_storage(self, spec: Spec, padded: tuple[int, int]) -> Storage:
        return {"weight_scale": (torch.uint8, blocked_shape(padded[0], padded[1] // _GROUP))}

    def pack_scales(self, scales: Scales, spec: Spec, padded: tuple[int, int]) -> dict[str, Tensor]:
        return {"weight_scale": block_scales(to_e8m0(scales.block))}

    def unpack_scales(self, parts: Parts, padded: tuple[int, int]) -> Scales:
        stored = parts["weight_scale"].view(torch.uint8)
        return Scales(from_e8m0(unblock_scales(stored, padded[0], padded[1] // _GROUP)))

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        weight = shapes["weight"]
        if len(weight) != 2 or weight[0] % 32 or weight[1] % 32:
            return False
        return shapes.get("weight_scale") == blocked_shape(weight[0], weight[1] // _GROUP)

    def layout_params(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Any]:
        return {"scale": parts["weight_scale"].view(torch.float8_e8m0fnu)}
