"""QuantizedTensor layouts for formats that comfy-kitchen has no layout for.

One class serves every format whose codes are one element a weight and whose scales are float32 over
rectangular blocks; :func:`register_scaled_layout` names a subclass for a format's grid.
Storage: ``_qdata [M, N]`` codes, ``scale [Mb, Nb]`` (or ``[]``, ``[M]``, ``[M, Nb, 1]``, as in the
    file).

Forward: ``linear(x, W)`` quantizes ``x`` to the same grid, one scale a row and column group, and
multiplies codes where the device has such a product; elsewhere it decodes ``W`` and multiplies in
the dtype of ``x``. Two quantized operands always multiply as codes, with the same result on every
device.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from comfy_kitchen.tensor.base import (
    LAYOUTS,
    BaseLayoutParams,
    QuantizedTensor,
    register_layout_class,
)
from torch import Tensor

from .. import kernels
from .codec import encode
from .geometries import Geometry, Scales
from .grids import E4M3, INT8, Grid
from .own_tensor import OwnLayout


class ScaledLayout(OwnLayout):
    """Codes of ``GRID`` under float32 scales over blocks. Subclasses set ``GRID``."""

    GRID: ClassVar[Grid]

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """``scale`` as in the file; ``transposed``: shape and codes are swapped logically."""

        transposed: bool = False

        def _tensor_fields(self) -> list[str]:
            return ["scale"]

    @classmethod
    def quantize(
        cls,
        tensor: Tensor,
        scale: Tensor | str | None = None,
        stochastic_rounding: int | None = 0,
        inplace_ops: bool = False,
        block: tuple[int | None, int | None] = (1, None),
        scale_ndim: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, Params]:
        """Quantize ``tensor [..., N]``.

        Args:
            tensor: floating, at least 1-D; leading dimensions are rows.
            scale: None or "recalculate" for absmax scales, or a scale tensor to keep.
            stochastic_rounding: a seed above 0 rounds up or down at random.
            inplace_ops: ``tensor`` may be overwritten (float32 only).
            block: rows and columns that share a scale, None for all.
            scale_ndim: dimensions of the stored scale, 0 to 3; by default 2.
        """
        matrix = tensor.reshape(-1, tensor.shape[-1])
        shape = (matrix.shape[0], matrix.shape[1])
        geometry = Geometry(*block)
        seeded = stochastic_rounding is not None and stochastic_rounding > 0
        if cls.GRID in (INT8, E4M3) and not isinstance(scale, Tensor) and not seeded:
            rows, cols = geometry.block(shape)
            codes, stored = kernels.quantize_blocks(matrix, cls.GRID.dtype, rows, cols)
            return cls._wrap(tensor, codes, stored, scale_ndim)
        values = matrix.to(torch.float32).contiguous()
        if isinstance(scale, Tensor):
            scales = Scales(scale.float().reshape(geometry.grid_shape(shape)))
        elif tensor.numel() == 0:
            scales = Scales(torch.ones(geometry.grid_shape(shape), device=tensor.device))
        else:
            scales = geometry.scales(values, cls.GRID)
        generator = None
        if stochastic_rounding and seeded:
            generator = torch.Generator(tensor.device).manual_seed(stochastic_rounding)
        fresh = values.data_ptr() != tensor.data_ptr() or inplace_ops
        codes = encode(values, cls.GRID, scales, generator=generator, inplace=fresh)
        return cls._wrap(tensor, codes, scales.block, scale_ndim)

    @classmethod
    def _wrap(
        cls, tensor: Tensor, codes: Tensor, stored: Tensor, scale_ndim: int | None
    ) -> tuple[Tensor, Params]:
        """Codes and ``Params`` of ``tensor``, its scales ``[Mb, Nb]`` in their stored shape."""
        if scale_ndim is not None and scale_ndim < 2:
            stored = stored.flatten() if scale_ndim else stored.reshape(())
        elif scale_ndim == 3:
            stored = stored.unsqueeze(-1)
        params = cls.Params(scale=stored, orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape))
        return codes.view(tensor.shape), params

    @classmethod
    def scale_grid(cls, qdata: Tensor, params: Params) -> Tensor:
        """Scales as ``[Mb, Nb]`` over ``qdata``'s rows, whatever their stored shape."""
        scale = params.scale
        if scale.ndim < 2:
            return scale.reshape(-1, 1)
        return scale.reshape(-1, scale.shape[1]) if scale.ndim == 3 else scale

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        """Decode to ``orig_dtype`` in the stored orientation."""
        matrix = qdata.reshape(-1, qdata.shape[-1])
        values = kernels.dequantize(matrix, cls.scale_grid(qdata, params), params.orig_dtype)
        return values.view(qdata.shape)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        return {"": qdata, "_scale": params.scale}

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """What keeps the scale geometry when the weight is rounded again (LoRA)."""
        params = qtensor._params
        rows, cols = qtensor._qdata.reshape(-1, qtensor._qdata.shape[-1]).shape
        grid = cls.scale_grid(qtensor._qdata, params)
        return {
            "block": (rows // grid.shape[0], cols // grid.shape[1]),
            "scale_ndim": params.scale.ndim,
        }

    @classmethod
    def multiply(cls, x: Any, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
        codes, w_scale = weight._qdata, cls.scale_grid(weight._qdata, weight._params)
        if not isinstance(x, QuantizedTensor):
            return kernels.linear(x, codes, w_scale, bias, weight._params.orig_dtype)
        rows = x._qdata.numel() // codes.shape[1]
        x_scale = cls.scale_grid(x._qdata, x._params)
        same = x._layout_cls == weight._layout_cls and not x._params.transposed
        if not same or x_scale.shape != (rows, w_scale.shape[1]):
            return cls.multiply(x.dequantize(), weight, bias)
        x_codes = x._qdata.reshape(rows, codes.shape[1])
        out = kernels.scaled_linear(x_codes, x_scale, codes, w_scale, bias, x._params.orig_dtype)
        return out.view(*x.shape[:-1], codes.shape[0])

    @classmethod
    def gelu(cls, tensor: QuantizedTensor, approximate: str) -> QuantizedTensor:
        """In one pass where scales follow the rows."""
        params, cols = tensor._params, tensor._qdata.shape[-1]
        grid = cls.scale_grid(tensor._qdata, params)
        if cls.GRID not in (INT8, E4M3) or grid.shape[0] * cols != tensor.numel():
            return super().gelu(tensor, approximate)
        matrix, group = tensor._qdata.reshape(-1, cols), cols // grid.shape[1]
        codes, scale = kernels.gelu_quantize(matrix, grid, matrix.dtype, group, approximate)
        params = dataclasses.replace(params, scale=scale.view(params.scale.shape))
        return QuantizedTensor(codes.view(tensor._qdata.shape), tensor._layout_cls, params)

    @classmethod
    def viewed(cls, tensor: QuantizedTensor, size: tuple[int, ...]) -> QuantizedTensor | None:
        """Leading dimensions are reshaped where scales follow the rows."""
        grid = cls.scale_grid(tensor._qdata, tensor._params)
        by_rows = grid.shape[0] * tensor._qdata.shape[-1] == tensor.numel()
        if not by_rows or size[-1] != tensor.shape[-1]:
            return None
        params = dataclasses.replace(tensor._params, scale=grid, orig_shape=size)
        return QuantizedTensor(tensor._qdata.view(size), tensor._layout_cls, params)


def register_scaled_layout(name: str, grid: Grid) -> str:
    """Register a :class:`ScaledLayout` of ``grid`` under ``name``, once; returns the name."""
    if name not in LAYOUTS:
        register_layout_class(name, type(name, (ScaledLayout,), {"GRID": grid}))
    return name
