"""INT8 with one scale a tensor or a row, optionally rotated: ``int8_tensorwise``.

Storage of a layer ``L`` with weight ``[M, N]``::

    L.weight         I8   [M, N]
    L.weight_scale   F32  [] (tensor) | [M, 1] (row)

and, rotated (ConvRot, rows only), ``"convrot": true, "convrot_groupsize": g`` in the JSON.
Forward: ``W = weight · weight_scale``, then the inverse rotation; the runtime rotates activations
instead. It quantizes them to INT8, one scale a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import FormatError
from ..candidates import Candidate
from ..format import FLOAT32_SCALE, Format, Parts
from ..geometries import FLOAT_SCALES, PER_ROW, PER_TENSOR, Geometry
from ..grids import INT8
from ..spec import Spec


class Int8Tensorwise(Format):
    """INT8 per tensor or per row."""

    id = "int8_tensorwise"
    candidates = (
        Candidate({"convrot": "auto"}, 49.3, 43.0, (7, 5)),
        Candidate({"convrot": 64}, 49.3, 43.0, (7, 5)),
    )
    title = "INT8, per tensor or row, ConvRot"
    aliases = ("int8",)
    grid = INT8
    stock = True
    hardware = "NVIDIA Turing (RTX 20) and newer, AMD RDNA 3"
    scalings = ("row", "tensor")
    rotates = True
    layout_names = ("TensorWiseINT8Layout",)

    def geometry(self, spec: Spec) -> Geometry:
        return PER_TENSOR if spec.scaling == "tensor" else PER_ROW

    def scale_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        return () if spec.scaling == "tensor" else (padded[0], 1)

    def conf(self, spec: Spec, shape: tuple[int, int]) -> dict[str, Any]:
        conf = super().conf(spec, shape)
        if spec.convrot:
            conf.update(convrot=True, convrot_groupsize=spec.convrot)
        return conf

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        weight, scale = shapes["weight"], shapes.get(FLOAT32_SCALE)
        if len(weight) != 2 or scale is None:
            return False
        rows = weight[0]
        if 0 in scale:  # what one converter writes for a small layer of zeros
            return True
        return scale in ((rows,), (rows, 1)) or all(extent == 1 for extent in scale)

    def normalise(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """``[M]``, which core would broadcast along the columns, → ``[M, 1]``; ``[1]`` → ``[]``."""
        self._check_group(parts["weight"].shape[1], conf)
        scale = parts[FLOAT32_SCALE].float()
        rows = parts["weight"].shape[0]
        if scale.numel() == 0:
            if not parts["weight"].is_meta and parts["weight"].any():
                raise FormatError(
                    f"{self.id}: the scale is empty, but there are codes: a damaged file"
                )
            scale = torch.full((), FLOAT_SCALES.floor, device=scale.device)
        if scale.ndim == 1 and scale.numel() == rows and rows > 1:
            scale = scale[:, None]
        elif scale.numel() == 1 and tuple(scale.shape) != (rows, 1):
            scale = scale.reshape(())
        return {**parts, FLOAT32_SCALE: scale}

    def convrot_of(self, conf: Mapping[str, Any]) -> int | None:
        return self._group_in(conf) if conf.get("convrot") else None

    def layout_params(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Any]:
        group = self.convrot_of(conf)
        rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
        return {"scale": parts[FLOAT32_SCALE], **rotation}
