"""A QuantizedTensor layout for small codes multiplied as INT8, where comfy-kitchen has none.

Storage: ``_qdata`` packed codes ``[M, N/2]`` or ``[M, 3N/4]``, ``scale [M, N/g]`` E4M3,
``s_channel [M]`` float32, ``codebook [16]`` float32 or None; see
:mod:`roundsmith.layouts.formats.asym_w4a8_int8`.

Forward: codes become INT8 weights (:func:`roundsmith.kernels.decode_grouped`), ``x`` is rotated and
rounded to INT8, one scale a token, and the two are multiplied as INT8, as comfy-kitchen's layout
does. Fields are named as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_kitchen.tensor.base import (
    LAYOUTS,
    BaseLayoutParams,
    QuantizedTensor,
    register_layout_class,
)
from torch import Tensor

from ..kernels import decode_grouped, scaled_linear
from .codec import encode
from .geometries import PER_ROW, ROW_LEVELS, Geometry
from .grids import INT4_WIDE, INT6, INT8, CodebookGrid, Grid
from .own_tensor import OwnLayout
from .packing import pack_low_first, pack_six_bits
from .transforms import rotate

NAME = "RoundsmithGroupedInt8Layout"


class GroupedInt8Layout(OwnLayout):
    """4- or 6-bit codes under group scales, multiplied as INT8."""

    traced_whole = True

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """``scale``: one a row and group; ``s_channel``: one a row; ``codebook``: the 16 values of
        a 4-bit code, or None for whole numbers; ``correction``: ``[N/g, M]``, added to the decoded
        weights before they are rotated back, or None; ``transposed``: shape and codes are swapped
        logically."""

        s_channel: Tensor | None = None
        correction: Tensor | None = None
        codebook: Tensor | None = None
        group_size: int = 16
        convrot_groupsize: int = 256
        transposed: bool = False

        def _tensor_fields(self) -> list[str]:
            optional = ("codebook", "correction")
            return ["scale", "s_channel", *(n for n in optional if getattr(self, n) is not None)]

    @classmethod
    def quantize(
        cls,
        tensor: Tensor,
        group_size: int = 16,
        convrot_groupsize: int = 256,
        bits: int = 4,
        codebook: Tensor | None = None,
        stochastic_rounding: int | None = 0,
        **_: Any,
    ) -> tuple[Tensor, Params]:
        """Rotate and quantize ``tensor [M, N]`` under absmax scales.

        Args:
            tensor: floating, 2-D; ``N`` a multiple of both group sizes.
            group_size: columns that share a scale.
            convrot_groupsize: columns that are rotated together.
            bits: 4 or 6.
            codebook: float32 ``[16]``, the values of 4-bit codes; None for whole numbers.
            stochastic_rounding: a seed above 0 rounds up or down at random.
        """
        w = rotate(tensor.to(torch.float32).contiguous(), convrot_groupsize)
        grid: Grid = INT6 if bits == 6 else INT4_WIDE
        if codebook is not None:
            grid = CodebookGrid.of("codebook", codebook.detach().cpu())
        scales = Geometry(1, group_size, ROW_LEVELS).scales(w, grid)
        generator = None
        if stochastic_rounding and stochastic_rounding > 0:
            generator = torch.Generator(tensor.device).manual_seed(stochastic_rounding)
        codes = encode(w, grid, scales, generator=generator)
        assert scales.tensor is not None
        params = cls.Params(
            scale=scales.block.to(torch.float8_e4m3fn),
            orig_dtype=tensor.dtype,
            orig_shape=tuple(tensor.shape),
            s_channel=scales.tensor.flatten(),
            codebook=codebook,
            group_size=group_size,
            convrot_groupsize=convrot_groupsize,
        )
        return pack_grouped(codes, bits), params

    @classmethod
    def decode_int8(cls, qdata: Tensor, params: Params) -> Tensor:
        """The INT8 weights ``[M, N]``, rotated, as stored."""
        return decode_grouped(qdata, params.scale, params.codebook, params.group_size)

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        """Decode and rotate back to ``orig_dtype`` in the stored orientation."""
        assert params.s_channel is not None
        w = cls.decode_int8(qdata, params).to(torch.float32).mul_(params.s_channel[:, None])
        if params.correction is not None:
            w += params.correction.float().t().repeat_interleave(params.group_size, 1)
        return rotate(w, params.convrot_groupsize).to(params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor | None, ...]:
        params = qtensor._params
        return qtensor._qdata, params.scale, params.s_channel, params.correction, params.codebook

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        assert params.s_channel is not None
        tensors = {"": qdata, "_s_rel": params.scale, "_s_channel": params.s_channel}
        if params.codebook is not None:
            tensors["_codebook"] = params.codebook
        if params.correction is not None:
            tensors["_correction"] = params.correction
        return tensors

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """What keeps the storage when the weight is rounded again (LoRA)."""
        params = qtensor._params
        columns = params.scale.shape[1] * params.group_size
        return {
            "group_size": params.group_size,
            "convrot_groupsize": params.convrot_groupsize,
            "bits": qtensor._qdata.shape[1] * 8 // columns,
            "codebook": params.codebook,
        }

    @classmethod
    def multiply(cls, x: Any, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
        params = weight._params
        if isinstance(x, QuantizedTensor):
            x = x.dequantize()
        if params.correction is not None:
            w = cls.dequantize(weight._qdata, params).to(x.dtype)
            return torch.nn.functional.linear(x, w, bias)
        flat = rotate(x.reshape(-1, x.shape[-1]).to(torch.float32), params.convrot_groupsize)
        scales = PER_ROW.scales(flat, INT8)
        codes = encode(flat, INT8, scales, inplace=True)
        w = cls.decode_int8(weight._qdata, params)
        out = scaled_linear(codes, scales.block, w, params.s_channel[:, None], bias, x.dtype)
        return out.view(*x.shape[:-1], w.shape[0])


def pack_grouped(codes: Tensor, bits: int) -> Tensor:
    """Codes as stored: of a codebook as they are, whole numbers from 0 up."""
    if codes.dtype == torch.int8:
        codes = (codes + (1 << bits - 1)).view(torch.uint8)
    return pack_six_bits(codes) if bits == 6 else pack_low_first(codes)


def register_grouped_layout() -> str:
    """Register :class:`GroupedInt8Layout`, once; returns its name."""
    if NAME not in LAYOUTS:
        register_layout_class(NAME, GroupedInt8Layout)
    return NAME
