"""INT4 per row, rotated, with activations rounded to INT4 or INT8: ``convrot_w4a4``.

Storage of a layer ``L`` with weight ``[M, N]``, ``N`` a multiple of 64 and of the group ``g``::

    L.weight         I8   [M, N/2]   two codes −7..7 a byte, even column in the low nibble
    L.weight_scale   F32  [M]        absmax / 7

and ``"convrot_groupsize": g`` in the JSON, with ``"linear_dtype": "int8"`` where activations are
rounded to INT8. Always rotated (ConvRot).
Forward: ``W = weight · weight_scale``, then the inverse rotation; the runtime rotates activations
instead and rounds them to INT4 (variant ``w4a4``) or INT8 (``w4a8``), one scale a token. Where
comfy-kitchen has no INT4 product it may use the other of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import FormatError
from ..candidates import Candidate
from ..format import FLOAT32_SCALE, Format, Parts
from ..geometries import Geometry, ScaleRule
from ..grids import INT4
from ..packing import pack_low_first, unpack_low_first
from ..spec import Fit, Spec

_COLUMNS = 64
_LINEAR_DTYPES = {"w4a4": "int4", "w4a8": "int8"}
_SCALES = ScaleRule(floor=float(torch.tensor(1e-10) / 7))


class ConvRotW4A4(Format):
    """INT4 per row, rotated."""

    id = "convrot_w4a4"
    candidates = (
        Candidate({"variant": "w4a8"}, 25.8, 25.7, (7, 5)),
        Candidate({"variant": "w4a4"}, 25.8, 18.4, (7, 5), (8, 9), 4),
    )
    title = "INT4 per row, ConvRot, INT4 or INT8 activations"
    aliases = ("int4",)
    grid = INT4
    search_pays = True
    stock = True
    hardware = "NVIDIA Turing (RTX 20) and newer; INT4 products up to Ada (RTX 40)"
    variants = ("w4a4", "w4a8")
    rotates = True
    always_rotates = True
    layout_names = ("TensorCoreConvRotW4A4Layout",)

    def geometry(self, spec: Spec) -> Geometry:
        return Geometry(1, None, _SCALES)

    def fit(self, spec: Spec, shape: tuple[int, ...]) -> Fit:
        if len(shape) == 2 and shape[1] % _COLUMNS:
            return Fit(None, f"the inputs of {shape} are not a multiple of {_COLUMNS}")
        return super().fit(spec, shape)

    def packed_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        return padded[0], padded[1] // 2

    def scale_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        return (padded[0],)

    def pack_codes(self, codes: Tensor, spec: Spec) -> Tensor:
        return pack_low_first(codes)

    def unpack_codes(self, parts: Parts, conf: Mapping[str, Any]) -> Tensor:
        codes = unpack_low_first(parts["weight"])
        if codes.is_meta:
            return codes.view(torch.int8)  # arithmetic without values imports torch's compiler
        return codes.bitwise_xor_(8).view(torch.int8).sub_(8)  # two's complement of four bits

    def conf(self, spec: Spec, shape: tuple[int, int]) -> dict[str, Any]:
        conf = {**super().conf(spec, shape), "convrot_groupsize": spec.convrot}
        if spec.variant == "w4a8":
            conf["linear_dtype"] = "int8"
        return conf

    @property
    def plain(self) -> bool:
        return False

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        weight, scale = shapes["weight"], shapes.get(FLOAT32_SCALE)
        if len(weight) != 2 or weight[1] * 2 % _COLUMNS:
            return False
        return scale in ((weight[0],), (weight[0], 1))

    def normalise(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """Scales ``[M, 1]`` → ``[M]``."""
        self._check_group(parts["weight"].shape[1] * 2, conf)
        if self._linear_dtype(conf) not in _LINEAR_DTYPES.values():
            raise FormatError(
                f"{self.id}: linear_dtype {self._linear_dtype(conf)!r} is neither int4 nor int8"
            )
        return {**parts, FLOAT32_SCALE: parts[FLOAT32_SCALE].float().reshape(-1)}

    @staticmethod
    def _linear_dtype(conf: Mapping[str, Any]) -> Any:
        return conf.get("linear_dtype", "int4")

    def layout_params(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "scale": parts[FLOAT32_SCALE],
            "convrot_groupsize": self.convrot_of(conf),
            "linear_dtype": self._linear_dtype(conf),
        }
