"""MXFP8 that older hardware runs as FP8: ``hybrid_mxfp8``.

Storage of a layer ``L`` with weight ``[M, N]``: as MXFP8 (see ``mxfp8.py``), and::

    L.weight_scalar   F32   []   the scale of the FP8 codes

Forward: on GPUs with MXFP8 products, MXFP8's. Elsewhere codes of one FP8 scale a tensor are derived
once, when the layer is loaded, ``round(W / weight_scalar)`` with MXFP8's ``W``; the layer then runs
as tensorwise FP8. Saving gives back the stored tensors.

``weight_scalar`` is the largest block scale (form ``largest``) or the largest magnitude over 448
(``tight``). The first only shifts exponents, so that the FP8 codes are MXFP8's values but for
subnormal ones: 31.5 dB either way for Gaussian weights, where the second, which rounds every weight
twice, has 28.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..candidates import Candidate
from ..format import Parts, Storage
from ..geometries import FLOAT_SCALES, Scales
from ..spec import Spec
from .mxfp8 import MXFP8

if TYPE_CHECKING:
    from comfy_kitchen.tensor import QuantizedTensor

_SCALAR = "weight_scalar"


class HybridMXFP8(MXFP8):
    """MXFP8 with a scale to run as FP8 by."""

    id = "hybrid_mxfp8"
    candidates: ClassVar[tuple[Candidate, ...]] = ()
    title = "MXFP8, FP8 on older GPUs"
    stock = False
    core_quantizes_input = False
    hardware = "NVIDIA Blackwell (RTX 50) as MXFP8, Ada (RTX 40) and newer as FP8"
    forms = ("largest", "tight")
    part_names = ("weight", "weight_scale", _SCALAR, "input_scale")
    layout_names = ()

    def stores_peak(self, spec: Spec) -> bool:
        return spec.form == "tight"

    def scale_storage(self, spec: Spec, padded: tuple[int, int]) -> Storage:
        return {**super().scale_storage(spec, padded), _SCALAR: (torch.float32, ())}

    def pack_scales(self, scales: Scales, spec: Spec, padded: tuple[int, int]) -> dict[str, Tensor]:
        scalar = scales.block.amax()
        if self.stores_peak(spec):
            assert scales.peak is not None
            scalar = scales.peak / self.grid.max
        scalar = torch.where(scalar > 0, scalar, FLOAT_SCALES.floor).reshape(())
        return {**super().pack_scales(scales, spec, padded), _SCALAR: scalar}

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        scalar = shapes.get(_SCALAR, (0,))
        return super().matches(conf, shapes) and torch.Size(scalar).numel() == 1

    def normalise(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """A scalar ``[1]`` becomes ``[]``."""
        return {**parts, _SCALAR: parts[_SCALAR].float().reshape(())}

    @property
    def layout(self) -> str:
        from ..hybrid_tensor import hybrid_layout

        return hybrid_layout()

    def read(
        self,
        parts: Parts,
        conf: Mapping[str, Any],
        shape: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> QuantizedTensor:
        from ..hybrid_tensor import hybrid_tensor

        parts = self.normalise(parts, conf)
        shape = shape or self.orig_shape(parts, conf)
        stored = {suffix: parts[suffix] for suffix in ("weight", "weight_scale", _SCALAR)}
        return hybrid_tensor(stored, lambda: self.decode(parts, conf, shape), shape, dtype)

    def parts_of(self, weight: QuantizedTensor) -> dict[str, Tensor]:
        from ..hybrid_tensor import stored_parts

        return stored_parts(weight)
