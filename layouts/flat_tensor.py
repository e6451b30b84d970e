"""QuantizedTensor layout of four-bit codes under flat scales: what bitsandbytes' formats run as.

Storage: ``_qdata`` uint8 ``[⌈M·N/2⌉]``, two codes a byte, row-major, the even element in the high
nibble; ``scale`` float32 ``[⌈M·N/group_size⌉]``; ``codebook`` float32 ``[16]``.

Forward: ``linear(x, W)`` multiplies in the dtype of ``x``; ``W`` is decoded a tile at a time, or
inside the product where the device has a kernel for that. Inputs are not quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_kitchen.tensor.base import (
    LAYOUTS,
    BaseLayoutParams,
    QuantizedTensor,
    dequantize_args,
    register_layout_class,
)
from torch import Tensor

from ..kernels import dequantize_4bit, linear_4bit
from .codec import encode
from .geometries import ABSMAX_SCALES, Geometry, Scales
from .grids import CodebookGrid
from .own_tensor import OwnLayout
from .packing import flat_cells, flat_scales, pack_flat

NAME = "RoundsmithFlatFourBitLayout"


class FlatFourBitLayout(OwnLayout):
    """Four-bit codes of a table under flat scales."""

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """``scale``, ``codebook`` and ``group_size`` as in the module's description."""

        codebook: Tensor
        group_size: int
        transposed: bool = False

        def _tensor_fields(self) -> list[str]:
            return ["scale", "codebook"]

    @classmethod
    def quantize(
        cls,
        tensor: Tensor,
        scale: Tensor | str | None = None,
        stochastic_rounding: int | None = 0,
        inplace_ops: bool = False,
        codebook: Tensor | None = None,
        group_size: int = 64,
        **_: Any,
    ) -> tuple[Tensor, Params]:
        """Quantize ``tensor [..., N]``.

        Args:
            tensor: floating, at least 1-D; leading dimensions are rows.
            scale: None or "recalculate" for absmax scales, or scales to keep.
            stochastic_rounding: a seed above 0 rounds up or down at random.
            inplace_ops: ``tensor`` may be overwritten (float32 only).
            codebook: float32 ``[16]``, the value of each code.
            group_size: consecutive weights that share a scale.
        """
        if codebook is None:
            raise TypeError(f"{cls.__name__}.quantize needs the codebook")
        matrix = tensor.reshape(-1, tensor.shape[-1])
        values = matrix.to(torch.float32).contiguous()
        rows, cols = values.shape
        grid = CodebookGrid.of("codebook", codebook, by_reciprocal=True)
        geometry = Geometry.in_order(group_size, ABSMAX_SCALES)
        if isinstance(scale, Tensor):
            scales = Scales(flat_cells(scale.float(), geometry, (rows, cols)))
        else:
            scales = geometry.scales(values, grid)
        generator = None
        if stochastic_rounding and stochastic_rounding > 0:
            generator = torch.Generator(tensor.device).manual_seed(stochastic_rounding)
        fresh = values.data_ptr() != tensor.data_ptr() or inplace_ops
        codes = encode(values, grid, scales, generator=generator, inplace=fresh)
        params = cls.Params(
            scale=flat_scales(scales.block, geometry, cols),
            orig_dtype=tensor.dtype,
            orig_shape=tuple(tensor.shape),
            codebook=codebook,
            group_size=group_size,
        )
        return pack_flat(codes), params

    @classmethod
    def _stored_shape(cls, params: Params) -> tuple[int, int]:
        """``(M, N)`` of the matrix in its stored orientation; leading dimensions are rows."""
        shape = params.orig_shape[::-1] if params.transposed else params.orig_shape
        return torch.Size(shape[:-1]).numel(), shape[-1]

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        """Decode to ``orig_dtype`` in the stored orientation."""
        shape = params.orig_shape[::-1] if params.transposed else params.orig_shape
        weight = dequantize_4bit(
            *(qdata, params.scale, params.codebook, params.group_size),
            *(cls._stored_shape(params), params.orig_dtype),
        )
        return weight.view(shape)

    @classmethod
    def multiply(cls, x: Any, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
        params = weight._params
        x = dequantize_args(x)
        bias = None if bias is None else bias.to(x.dtype)
        return linear_4bit(
            *(x, weight._qdata, params.scale, params.codebook, params.group_size),
            *(cls._stored_shape(params), bias),
        )

    @classmethod
    def viewed(cls, tensor: QuantizedTensor, size: tuple[int, ...]) -> QuantizedTensor | None:
        """Any reshape: the codes are flat."""
        fields = {**tensor._params.__dict__, "orig_shape": size}
        return QuantizedTensor(tensor._qdata, tensor._layout_cls, cls.Params(**fields))

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, ...]:
        return qtensor._qdata, qtensor._params.scale, qtensor._params.codebook

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        return {"": qdata, ".absmax": params.scale}

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """What keeps table and groups when the weight is rounded again (LoRA)."""
        params = qtensor._params
        return {"codebook": params.codebook, "group_size": params.group_size}

    @classmethod
    def get_logical_shape_from_storage(cls, storage: tuple[int, ...]) -> tuple[int, ...]:
        """Codes are flat: their shape tells nothing of the weight's."""
        return storage


def register_flat_layout() -> str:
    """Register the layout, once; returns its name."""
    if NAME not in LAYOUTS:
        register_layout_class(NAME, FlatFourBitLayout)
    return NAME
