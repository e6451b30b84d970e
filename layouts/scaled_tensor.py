"""QuantizedTensor layouts for formats that comfy-kitchen has no layout for.

One class serves every format whose codes are one element a weight and whose scales are float32 over
rectangular blocks; :func:`register_scaled_layout` names a subclass for a format's grid.
Storage: ``_qdata [M, N]`` codes, ``scale [Mb, Nb]`` (or ``[]``, ``[M]``, ``[M, Nb, 1]``, as in the
    file).

Forward: ``linear(x, W)`` quantizes ``x`` to the same grid, one scale a row and column group, and
multiplies codes where the device has such a product; elsewhere it decodes ``W`` and multiplies in
the dtype of ``x``. Two quantized operands always multiply as codes, with the same result on every
device. Operations not listed decode first.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from comfy_kitchen.tensor.base import (
    LAYOUTS,
    BaseLayoutParams,
    QuantizedLayout,
    QuantizedTensor,
    dequantize_args,
    register_layout_class,
    register_layout_op,
)
from torch import Tensor

from ..kernels import dequantize, hardware_product, scaled_linear
from .codec import encode
from .geometries import Geometry, Scales
from .grids import Grid

aten = torch.ops.aten


class ScaledLayout(QuantizedLayout):
    """Codes of ``GRID`` under float32 scales over blocks. Subclasses set ``GRID``."""

    GRID: ClassVar[Grid]

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """``scale`` as in the file; ``transposed`` says that shape and codes are swapped logically.
        """

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
        values = matrix.to(torch.float32).contiguous()
        shape = (matrix.shape[0], matrix.shape[1])
        geometry = Geometry(*block)
        if isinstance(scale, Tensor):
            scales = Scales(scale.float().reshape(geometry.grid_shape(shape)))
        elif tensor.numel() == 0:
            scales = Scales(torch.ones(geometry.grid_shape(shape), device=tensor.device))
        else:
            scales = geometry.scales(values, cls.GRID)
        generator = None
        if stochastic_rounding and stochastic_rounding > 0:
            generator = torch.Generator(tensor.device).manual_seed(stochastic_rounding)
        fresh = values.data_ptr() != tensor.data_ptr() or inplace_ops
        codes = encode(values, cls.GRID, scales, generator=generator, inplace=fresh)
        stored = scales.block
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
        values = dequantize(matrix, cls.scale_grid(qdata, params))
        return values.view(qdata.shape).to(params.orig_dtype)

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


def register_scaled_layout(name: str, grid: Grid) -> str:
    """Register a :class:`ScaledLayout` of ``grid`` under ``name``, once; returns the name."""
    if name not in LAYOUTS:
        register_layout_class(name, type(name, (ScaledLayout,), {"GRID": grid}))
    return name


def _is_ours(value: object) -> bool:
    return isinstance(value, QuantizedTensor) and issubclass(value.layout_cls, ScaledLayout)


def _multiply(x: Any, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` with ``weight`` of one of our layouts, as stored ``[N, K]``."""
    layout = weight.layout_cls
    codes, w_scale = weight._qdata, layout.scale_grid(weight._qdata, weight._params)
    group = codes.shape[1] // w_scale.shape[1]
    if isinstance(x, QuantizedTensor) and not (
        x._layout_cls == weight._layout_cls
        and not x._params.transposed
        and layout.scale_grid(x._qdata, x._params).shape
        == (x._qdata.numel() // codes.shape[1], w_scale.shape[1])
    ):
        x = x.dequantize()
    if not isinstance(x, QuantizedTensor):
        if not hardware_product(codes.dtype, codes.device, w_scale.shape[1]):
            w = _stored(weight).to(x.dtype)
            return torch.nn.functional.linear(x, w, None if bias is None else bias.to(x.dtype))
        x = QuantizedTensor.from_float(x, weight._layout_cls, block=(1, group))
    x_codes = x._qdata.reshape(-1, codes.shape[1])
    x_scale = layout.scale_grid(x._qdata, x._params)
    out = scaled_linear(x_codes, x_scale, codes, w_scale, bias, x._params.orig_dtype)
    return out.view(*x.shape[:-1], codes.shape[0])


def _stored(weight: QuantizedTensor) -> Tensor:
    """Decoded weight in its stored orientation ``[N, K]``."""
    return weight.layout_cls.dequantize(weight._qdata, weight._params)


@register_layout_op(aten.linear.default, ScaledLayout)
def _linear(qt: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    if not _is_ours(weight) or weight._params.transposed or weight.ndim != 2:
        return torch.nn.functional.linear(*dequantize_args((x, weight, bias)))
    return _multiply(x, weight, dequantize_args(bias))


@register_layout_op(aten.mm.default, ScaledLayout)
def _mm(qt: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight = args[0], args[1]
    if not _is_ours(weight) or not weight._params.transposed:
        return torch.mm(*dequantize_args((x, weight)))
    return _multiply(x, weight, None)


@register_layout_op(aten.addmm.default, ScaledLayout)
def _addmm(qt: Any, args: Any, kwargs: Any) -> Tensor:
    bias, x, weight = args[0], args[1], args[2]
    plain = kwargs.get("beta", 1) == 1 and kwargs.get("alpha", 1) == 1 and bias.ndim == 1
    if not plain or not _is_ours(weight) or not weight._params.transposed:
        return torch.addmm(*dequantize_args((bias, x, weight)), **kwargs)
    return _multiply(x, weight, dequantize_args(bias))


def _flip(qt: QuantizedTensor) -> QuantizedTensor:
    params = qt._params
    flipped = dataclasses.replace(
        params, orig_shape=params.orig_shape[::-1], transposed=not params.transposed
    )
    return QuantizedTensor(qt._qdata, qt._layout_cls, flipped)


@register_layout_op(aten.t.default, ScaledLayout)
def _t(qt: Any, args: Any, kwargs: Any) -> Any:
    return _flip(args[0]) if args[0].ndim == 2 else args[0].dequantize()


@register_layout_op(aten.transpose.int, ScaledLayout)
def _transpose(qt: Any, args: Any, kwargs: Any) -> Any:
    tensor, a, b = args[0], args[1], args[2]
    ndim = tensor.ndim
    if ndim == 2 and (a % ndim) != (b % ndim):
        return _flip(tensor)
    return torch.transpose(tensor.dequantize(), a, b)


def _view(qt: Any, args: Any, kwargs: Any) -> Any:
    """Reshape leading dimensions where scales follow the rows; anything else decodes."""
    tensor, size = args[0], list(args[1])
    params = tensor._params
    if not params.transposed and -1 in size and tensor.numel():
        known = 1
        for extent in size:
            known *= extent if extent != -1 else 1
        size[size.index(-1)] = tensor.numel() // known
    if tuple(size) == tuple(tensor.shape):  # a view is a new tensor, even where nothing changes
        return QuantizedTensor(tensor._qdata, tensor._layout_cls, params)
    grid = tensor.layout_cls.scale_grid(tensor._qdata, params)
    by_rows = grid.shape[0] * tensor._qdata.shape[-1] == tensor.numel()
    if params.transposed or not by_rows or not size or size[-1] != tensor.shape[-1]:
        return tensor.dequantize().reshape(size)
    new = dataclasses.replace(params, scale=grid, orig_shape=tuple(size))
    return QuantizedTensor(tensor._qdata.view(size), tensor._layout_cls, new)


for _op in (aten.view.default, aten.reshape.default, aten._unsafe_view.default):
    register_layout_op(_op, ScaledLayout)(_view)


@register_layout_op(aten.gelu.default, ScaledLayout)
def _gelu(qt: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    out = torch.nn.functional.gelu(tensor.dequantize(), **kwargs)
    return out if tensor._params.transposed else tensor.requantize_from_float(out)


@register_layout_op(aten.add_.Tensor, ScaledLayout)
def _add_(qt: Any, args: Any, kwargs: Any) -> Any:
    target, other = args[0], args[1]
    if not isinstance(target, QuantizedTensor):
        return target.add_(dequantize_args(other), **kwargs)
    total = torch.add(target.dequantize(), dequantize_args(other), **kwargs)
    if target._params.transposed:
        total = total.t()
    fresh = target.requantize_from_float(total.contiguous())
    target._qdata.copy_(fresh._qdata)
    target._params.scale.copy_(fresh._params.scale)
    return target
