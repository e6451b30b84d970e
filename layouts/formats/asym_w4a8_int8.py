"""4- or 6-bit codes that are multiplied as INT8, rotated: ``asym_w4a8_int8``.

Storage of a layer ``L`` with weight ``[M, N]``, in groups of 16 columns::

    L.weight             I8       [M, N/2]    4 bits: codes 0..15, even column in the low nibble
                                  [M, 3N/4]   6 bits: codes 0..63, low nibbles as above, then the
                                              top two bits, four codes a byte
    L.weight_s_rel       F8_E4M3  [M, N/16]   one a row and group
    L.weight_s_channel   F32      [M]         one a row
    L.weight_codebook    F32      [16]        4 bits: what codes stand for, ascending

and ``"group_size": 16, "convrot_groupsize": g`` in the JSON. Always rotated (ConvRot).
Forward: ``q = clamp(round(v · s_rel), ±127)`` with ``v`` the code's value, ``codebook[code]``, or
``code − 8`` (4 bits without a codebook) or ``code − 32``; ``W = q · s_channel``, then the inverse
rotation. The runtime multiplies ``q`` as INT8 with activations it rotates and rounds to INT8, one
scale a token.

The codebook is fitted to each layer; where that gains little, it is the one that comfy-kitchen's
kernels have built in (Lloyd-Max levels of a normal distribution, groups scaled to a largest
magnitude of 1).

``L.weight_correction [N/16, M]``, which an asymmetric encoder adds to ``W`` a group before the
rotation back, is read and run, by decoding; ComfyUI overlooks it, and it is never written.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...errors import FormatError
from ...kernels import unpack_six_bits
from ..candidates import Candidate
from ..format import Format, Parts, Storage
from ..geometries import ROW_LEVELS, Geometry, Scales
from ..grids import INT4_WIDE, INT6, CodebookGrid, Grid
from ..packing import pack_low_first, pack_six_bits, unpack_low_first
from ..spec import Fit, Spec
from ..transforms import rotate

_GROUP = 16
_KITCHEN = "AsymW4A8Int8Layout"
_NORMAL = CodebookGrid.of(
    "w4a8",
    (
        *(-0.980602, -0.794529, -0.638165, -0.500986, -0.377321, -0.263187, -0.155210, -0.050720),
        *(0.052541, 0.156985, 0.265284, 0.379533, 0.502636, 0.638953, 0.794876, 0.980671),
    ),
)


class AsymW4A8(Format):
    """Small codes under group scales, multiplied as INT8."""

    id = "asym_w4a8_int8"
    candidates = (
        Candidate({"variant": "w6a8"}, 40.5, 38.9, (7, 5)),
        Candidate({"variant": "w4a8"}, 29.3, 29.2, (7, 5)),
    )
    title = "4 or 6 bits, ConvRot, multiplied as INT8"
    grid = _NORMAL
    search_pays = True
    stock_note = "ComfyUI 0.33 and newer load w4a8 by themselves; w6a8 needs Roundsmith"
    hardware = "NVIDIA Turing (RTX 20) and newer, AMD RDNA 3"
    variants = ("w4a8", "w6a8")
    rotates = True
    always_rotates = True
    layout_names = (_KITCHEN,)
    part_names = (
        *("weight", "weight_s_rel", "weight_s_channel", "weight_codebook", "weight_correction"),
        "input_scale",
    )

    def geometry(self, spec: Spec) -> Geometry:
        return Geometry(1, _GROUP, ROW_LEVELS)

    def grid_for(self, spec: Spec) -> Grid:
        return INT6 if spec.variant == "w6a8" else _NORMAL

    def own_grid(self, spec: Spec) -> bool:
        return spec.variant == "w4a8"

    def fit(self, spec: Spec, shape: tuple[int, ...]) -> Fit:
        columns = 32 if spec.variant == "w6a8" else 16
        if len(shape) == 2 and shape[1] % columns:
            return Fit(None, f"the inputs of {shape} are not a multiple of {columns}")
        return super().fit(spec, shape)

    # ---- the file ----------------------------------------------------------------------------

    @property
    def plain(self) -> bool:
        return False

    @property
    def weight_dtype(self) -> torch.dtype:
        return torch.int8

    def packed_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        return padded[0], padded[1] * (6 if spec.variant == "w6a8" else 4) // 8

    def scale_storage(self, spec: Spec, padded: tuple[int, int]) -> Storage:
        stored: Storage = {
            "weight_s_rel": (torch.float8_e4m3fn, (padded[0], padded[1] // _GROUP)),
            "weight_s_channel": (torch.float32, (padded[0],)),
        }
        if self.own_grid(spec):
            stored["weight_codebook"] = (torch.float32, (16,))
        return stored

    def pack_codes(self, codes: Tensor, spec: Spec) -> Tensor:
        if spec.variant == "w6a8":
            return pack_six_bits((codes + 32).view(torch.uint8))
        return pack_low_first(codes)

    def unpack_codes(self, parts: Parts, conf: Mapping[str, Any]) -> Tensor:
        if self.variant_of(_shapes(parts), conf) == "w6a8":
            return unpack_six_bits(parts["weight"]).view(torch.int8).sub_(32)
        codes = unpack_low_first(parts["weight"])
        return codes if "weight_codebook" in parts else codes.view(torch.int8).sub_(8)

    def pack_grid(self, grid: Grid) -> dict[str, Tensor]:
        if not isinstance(grid, CodebookGrid):
            return {}
        return {"weight_codebook": torch.tensor(grid.values)}

    def grid_of(self, parts: Parts, conf: Mapping[str, Any]) -> Grid:
        if "weight_codebook" in parts:
            try:
                return CodebookGrid.of("w4a8", parts["weight_codebook"].cpu())
            except ValueError as error:
                raise FormatError(f"{self.id}: {error}; a damaged file") from error
        six = self.variant_of(_shapes(parts), conf) == "w6a8"
        return INT6 if six else INT4_WIDE

    def pack_scales(self, scales: Scales, spec: Spec, padded: tuple[int, int]) -> dict[str, Tensor]:
        assert scales.tensor is not None
        return {
            "weight_s_rel": scales.block.to(torch.float8_e4m3fn),
            "weight_s_channel": scales.tensor.reshape(-1),
        }

    def unpack_scales(self, parts: Parts, padded: tuple[int, int]) -> Scales:
        row = parts["weight_s_channel"].to(torch.float32)[:, None]
        return Scales(parts["weight_s_rel"].to(torch.float32), row, ROW_LEVELS.between)

    def conf(self, spec: Spec, shape: tuple[int, int]) -> dict[str, Any]:
        conf = super().conf(spec, shape)
        return {**conf, "group_size": _GROUP, "convrot_groupsize": spec.convrot}

    # ---- reading -----------------------------------------------------------------------------

    def variant_of(
        self, shapes: Mapping[str, tuple[int, ...]], conf: Mapping[str, Any]
    ) -> str | None:
        """``"asymmetric"``, none of those that are written, with a correction."""
        if "weight_correction" in shapes:
            return "asymmetric"
        columns = shapes["weight_s_rel"][1] * _group(conf)
        return "w6a8" if shapes["weight"][1] * 4 == columns * 3 else "w4a8"

    def orig_shape(self, parts: Parts, conf: Mapping[str, Any]) -> tuple[int, int]:
        rows, groups = parts["weight_s_rel"].shape
        return rows, groups * _group(conf)

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        weight, groups = shapes["weight"], shapes.get("weight_s_rel", ())
        if len(weight) != 2 or len(groups) != 2 or groups[0] != weight[0]:
            return False
        columns = groups[1] * _group(conf)
        codebook = shapes.get("weight_codebook")
        if weight[1] * 4 == columns * 3:
            known = codebook is None and columns % 32 == 0
        else:
            known = weight[1] * 2 == columns and codebook in (None, (16,))
        return known and shapes.get("weight_s_channel") == (weight[0],)

    def normalise(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """Group scales typed uint8 are E4M3."""
        groups = parts["weight_s_rel"]
        self._check_group(groups.shape[1] * _group(conf), conf)
        if groups.dtype == torch.uint8:
            groups = groups.view(torch.float8_e4m3fn)
        return {**parts, "weight_s_rel": groups}

    def decode(
        self, parts: Parts, conf: Mapping[str, Any], shape: tuple[int, int] | None = None
    ) -> Tensor:
        """As stored; with a correction where the file has one."""
        correction = parts.get("weight_correction")
        w = super().decode(parts, conf, shape)
        if correction is None:
            return w
        group = w.shape[1] // correction.shape[0]
        return w + rotate(correction.float().t().repeat_interleave(group, 1), self._group_in(conf))

    @property
    def layout(self) -> str:
        from comfy_kitchen.tensor.base import LAYOUTS

        from ..grouped_tensor import register_grouped_layout

        return _KITCHEN if _KITCHEN in LAYOUTS else register_grouped_layout()

    def layout_for(self, parts: Parts, conf: Mapping[str, Any]) -> str:
        from ..grouped_tensor import register_grouped_layout

        six = self.variant_of(_shapes(parts), conf) == "w6a8"
        if six and self.layout == _KITCHEN and not _kitchen_decodes_six_bits():
            return register_grouped_layout()
        return self.layout

    def layout_params(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "scale": parts["weight_s_rel"],
            "s_channel": parts["weight_s_channel"],
            "codebook": parts.get("weight_codebook"),
            "correction": parts.get("weight_correction"),
            "group_size": _group(conf),
            "convrot_groupsize": self.convrot_of(conf),
        }


def _group(conf: Mapping[str, Any]) -> int:
    """Group size of a layer's JSON."""
    size = conf.get("group_size", _GROUP)
    if type(size) is not int or size < 1:
        raise FormatError(f"asym_w4a8_int8: group_size {size!r} is no whole number above 0")
    return size


def _shapes(parts: Parts) -> dict[str, tuple[int, ...]]:
    return {suffix: tuple(part.shape) for suffix, part in parts.items()}


@cache
def _kitchen_decodes_six_bits() -> bool:
    """Whether the installed comfy-kitchen decodes rows of 6-bit codes; older ones know 4 only."""
    from comfy_kitchen.tensor.base import get_layout_class

    layout = get_layout_class(_KITCHEN)
    codes = pack_six_bits(torch.full((1, 32), 33, dtype=torch.uint8))
    params = layout.Params(
        scale=torch.ones(1, 2).to(torch.float8_e4m3fn), s_channel=torch.ones(1),
        orig_dtype=torch.float32, orig_shape=(1, 32), convrot_groupsize=4,
    )  # fmt: skip
    try:
        found = layout.dequantize(codes, params)
    except (ValueError, RuntimeError):
        return False
    return found.shape == (1, 32) and bool(found.any())
