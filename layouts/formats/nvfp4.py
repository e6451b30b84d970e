"""NVFP4, 4-bit floats under two levels of scales: ``nvfp4``.

Storage of a layer ``L`` with weight ``[M, N]``, padded to multiples of 16 (``Mp, Np``)::

    L.weight          U8       [Mp, Np/2]   two E2M1 codes a byte, even column in the high nibble
    L.weight_scale    F8_E4M3  [⌈Mp⌉128, ⌈Np/16⌉4]   one a row and 16 columns, cuBLAS's tiled layout
    L.weight_scale_2  F32      []           tensor scale, absmax / (448 · 6)

Forward: ``W[m, n] = value(weight[m, n]) · weight_scale[m, n // 16] · weight_scale_2``, times
``pre_quant_scale [N]`` where the file smooths (the runtime multiplies its inputs instead).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..candidates import Candidate
from ..format import Format, Parts, Storage
from ..geometries import TWO_LEVELS, Geometry, Scales
from ..grids import E2M1
from ..packing import (
    block_scales,
    blocked_shape,
    pack_high_first,
    unblock_scales,
    unpack_high_first,
)
from ..spec import Spec

_GROUP = 16


class NVFP4(Format):
    """E2M1 under E4M3 block scales and a tensor scale."""

    id = "nvfp4"
    candidates = (Candidate({}, 27.9, 21.8, (10, 0), bits=4),)
    title = "NVFP4"
    aliases = ("fp4",)
    grid = E2M1
    search_pays = True
    stock = True
    core_quantizes_input = True
    hardware = "NVIDIA Blackwell (RTX 50)"
    padding = (16, 16)
    part_names = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
    layout_names = ("TensorCoreNVFP4Layout",)

    def geometry(self, spec: Spec) -> Geometry:
        return Geometry(1, _GROUP, TWO_LEVELS)

    def storage(self, spec: Spec, shape: tuple[int, int]) -> Storage:
        rows, cols = self.padded_shape(shape)
        return {
            "weight": (torch.uint8, (rows, cols // 2)),
            "weight_scale": (torch.float8_e4m3fn, blocked_shape(rows, cols // _GROUP)),
            "weight_scale_2": (torch.float32, ()),
        }

    def pack_codes(self, codes: Tensor, spec: Spec) -> Tensor:
        return pack_high_first(codes)

    def unpack_codes(self, parts: Parts, conf: Mapping[str, Any]) -> Tensor:
        return unpack_high_first(parts["weight"])

    def pack_scales(self, scales: Scales, spec: Spec, padded: tuple[int, int]) -> dict[str, Tensor]:
        assert scales.tensor is not None
        return {
            "weight_scale": block_scales(scales.block.to(torch.float8_e4m3fn)),
            "weight_scale_2": scales.tensor.reshape(()),
        }

    def unpack_scales(self, parts: Parts, padded: tuple[int, int]) -> Scales:
        stored = parts["weight_scale"]
        block = unblock_scales(stored, padded[0], padded[1] // _GROUP)
        return Scales(block.to(torch.float32), parts["weight_scale_2"])

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        weight = shapes["weight"]
        if len(weight) != 2 or weight[0] % 16 or weight[1] % 8:
            return False
        expected = blocked_shape(weight[0], weight[1] * 2 // _GROUP)
        return shapes.get("weight_scale") == expected and "weight_scale_2" in shapes

    def normalise(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """Old files: block scales typed uint8, tensor scale ``[1]``; NaN block scales under a
        tensor scale of 0, as one converter writes a layer of zeros."""
        block = parts["weight_scale"]
        if block.dtype == torch.uint8:
            block = block.view(torch.float8_e4m3fn)
        tensor = parts["weight_scale_2"].to(torch.float32).reshape(())
        if not tensor.is_meta and tensor == 0:
            block = torch.zeros_like(block, dtype=torch.uint8).view(block.dtype)
        return {**parts, "weight_scale": block, "weight_scale_2": tensor}

    def decode(
        self, parts: Parts, conf: Mapping[str, Any], shape: tuple[int, int] | None = None
    ) -> Tensor:
        """As stored; a smoothed layer's columns are scaled back by ``pre_quant_scale``."""
        w = super().decode(parts, conf, shape)
        smoothing = parts.get("pre_quant_scale")
        return w if smoothing is None else w * smoothing.float()

    def layout_params(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Any]:
        return {"scale": parts["weight_scale_2"], "block_scale": parts["weight_scale"]}
