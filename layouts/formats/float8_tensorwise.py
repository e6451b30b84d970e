"""FP8 with one scale a tensor: ``float8_e4m3fn`` and ``float8_e5m2``.

Storage of a layer ``L`` with weight ``[M, N]``::

    L.weight         F8_E4M3 | F8_E5M2  [M, N]
    L.weight_scale   F32                []

Forward: ``W = weight · weight_scale``. ComfyUI runs it through comfy-kitchen's FP8 layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..candidates import Candidate
from ..format import FLOAT32_SCALE, Format, Parts
from ..geometries import PER_TENSOR, Geometry
from ..grids import E4M3, E5M2
from ..spec import Spec


class _Float8Tensorwise(Format):
    stock = True
    core_quantizes_input = True

    def geometry(self, spec: Spec) -> Geometry:
        return PER_TENSOR

    def scale_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        return ()

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        scale = shapes.get(FLOAT32_SCALE, ())
        return len(shapes["weight"]) == 2 and all(extent == 1 for extent in scale)

    def normalise(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """One-element scales become ``[]``; a missing scale, as plain FP8 files have, is 1."""
        scale = parts.get(FLOAT32_SCALE)
        if scale is None:
            scale = torch.ones((), device=parts["weight"].device)
        return {**parts, FLOAT32_SCALE: scale.to(torch.float32).reshape(())}


class Float8E4M3(_Float8Tensorwise):
    """E4M3, ±448."""

    id = "float8_e4m3fn"
    candidates = (Candidate({}, 38.7, 32.6, (8, 9)),)
    title = "FP8 E4M3, per tensor"
    aliases = ("fp8", "fp8_e4m3fn")
    grid = E4M3
    input_max = E4M3.max
    hardware = "NVIDIA Ada (RTX 40) and newer, AMD RDNA 4"
    layout_names = ("TensorCoreFP8E4M3Layout", "TensorCoreFP8Layout")


class Float8E5M2(_Float8Tensorwise):
    """E5M2, ±57344: more range, one bit less precision."""

    id = "float8_e5m2"
    title = "FP8 E5M2, per tensor"
    aliases = ("fp8_e5m2",)
    grid = E5M2
    input_max = E5M2.max
    hardware = "decoded to 16 bits"
    layout_names = ("TensorCoreFP8E5M2Layout",)  # ComfyUI's; comfy-kitchen's own rounds to E4M3
    own_layout = "RoundsmithFloat8E5M2Layout"
