"""QuantizedTensor layouts of ``hybrid_mxfp8``: MXFP8 where the GPU multiplies it, else FP8.

The FP8 layout runs codes derived from MXFP8's once. What the file held stays in main memory, so
that saving gives it back; a weight that is rounded again (LoRA) is rounded to MXFP8 first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from comfy_kitchen.tensor import TensorCoreMXFP8Layout
from comfy_kitchen.tensor.base import (
    LAYOUTS,
    BaseLayoutParams,
    QuantizedTensor,
    dequantize_args,
    register_layout_class,
)
from torch import Tensor

from .codec import encode, pad, with_peak
from .grids import E4M3
from .own_tensor import OwnLayout
from .packing import from_e8m0
from .scaled_tensor import ScaledLayout

_MXFP8 = "TensorCoreMXFP8Layout"
_FP8_NAME, _MX_NAME = "RoundsmithHybridFloat8Layout", "RoundsmithHybridMXFP8Layout"


@dataclass(frozen=True, eq=False)
class Original:
    """A layer's tensors as stored, by suffix, in main memory; not moved with the weight.

    One object, however often a weight is copied: copies hold the same tensors and compare equal,
    as ``torch.compile`` asks of what it guards.
    """

    parts: Mapping[str, Tensor]

    def __deepcopy__(self, memo: dict[int, Any]) -> Original:
        return self


@cache
def multiplies_mxfp8() -> bool:
    """Whether this machine's GPU multiplies MXFP8."""
    return bool(TensorCoreMXFP8Layout.supports_fast_matmul())


class HybridFloat8Layout(ScaledLayout):
    """E4M3 codes under one scale, with the stored MXFP8 tensors beside them."""

    GRID = E4M3

    @dataclass(frozen=True)
    class Params(ScaledLayout.Params):
        """``original``: what the file held; None for inputs."""

        original: Original | None = None

    @classmethod
    def quantize(
        cls, tensor: Tensor, *args: Any, form: str | None = None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """As :class:`ScaledLayout`; with ``form``, a weight is rounded to that form of the format.
        """
        if form is None:
            return super().quantize(tensor, *args, **kwargs)
        weight = _round_again(tensor, form, kwargs.get("stochastic_rounding"))
        return weight._qdata, weight._params

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """The form of its scalar."""
        return {"form": _form(stored_parts(qtensor))}


class HybridMXFP8Layout(OwnLayout):
    """MXFP8 as comfy-kitchen runs it, with the scalar that the file holds."""

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """``scale`` as comfy-kitchen's layout has it, ``scalar`` float32 ``[]``."""

        scalar: Tensor
        transposed: bool = False

        def _tensor_fields(self) -> list[str]:
            return ["scale", "scalar"]

    @classmethod
    def quantize(
        cls, tensor: Tensor, form: str = "largest", stochastic_rounding: int | None = 0, **_: Any
    ) -> tuple[Tensor, Any]:
        """Round ``tensor [M, N]`` to hybrid MXFP8 of this form."""
        weight = _round_again(tensor, form, stochastic_rounding)
        return weight._qdata, weight._params

    @classmethod
    def _kitchens(cls, weight: QuantizedTensor) -> QuantizedTensor:
        params = weight._params
        return QuantizedTensor(
            weight._qdata,
            _MXFP8,
            TensorCoreMXFP8Layout.Params(params.scale, params.orig_dtype, params.orig_shape),
        )

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        return TensorCoreMXFP8Layout.dequantize(qdata, params)

    @classmethod
    def multiply(cls, x: Any, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
        x = dequantize_args(x)
        rows = QuantizedTensor.from_float(x.reshape(-1, x.shape[-1]).contiguous(), _MXFP8)
        bias = None if bias is None else bias.to(x.dtype)
        out = torch.nn.functional.linear(rows, cls._kitchens(weight), bias)
        return out.view(*x.shape[:-1], weight.shape[0])

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, ...]:
        return qtensor._qdata, qtensor._params.scale, qtensor._params.scalar

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        return {"": qdata, "_scale": params.scale, "_scalar": params.scalar}

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """The form of its scalar."""
        return {"form": _form(stored_parts(qtensor))}


def hybrid_layout() -> str:
    """The layout that this machine runs; both are registered, once."""
    for name, layout in ((_FP8_NAME, HybridFloat8Layout), (_MX_NAME, HybridMXFP8Layout)):
        if name not in LAYOUTS:
            register_layout_class(name, layout)
    return _MX_NAME if multiplies_mxfp8() else _FP8_NAME


def hybrid_tensor(
    parts: Mapping[str, Tensor],
    decode: Callable[[], Tensor],
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> QuantizedTensor:
    """A stored layer as a tensor that runs.

    Args:
        parts: ``weight``, ``weight_scale`` and ``weight_scalar``.
        decode: gives MXFP8's weight, float32 ``[M, N]``.
        shape: ``(M, N)``.
        dtype: what the weight stands for.
    """
    name, scalar = hybrid_layout(), parts["weight_scalar"]
    if name == _MX_NAME:
        scale = parts["weight_scale"].view(torch.float8_e8m0fnu)
        mx = HybridMXFP8Layout.Params(scale, dtype, shape, scalar)
        return QuantizedTensor(parts["weight"].contiguous(), name, mx)
    codes = E4M3.round(decode() / scalar)
    original = Original({suffix: part.cpu() for suffix, part in parts.items()})
    return QuantizedTensor(
        codes, name, HybridFloat8Layout.Params(scalar, dtype, shape, original=original)
    )


def stored_parts(weight: QuantizedTensor) -> dict[str, Tensor]:
    """The file tensors of a running weight, by suffix."""
    params = weight._params
    if isinstance(params, HybridFloat8Layout.Params):
        assert params.original is not None
        return dict(params.original.parts)
    scale = params.scale.view(torch.uint8)
    return {"weight": weight._qdata, "weight_scale": scale, "weight_scalar": params.scalar}


def _form(parts: Mapping[str, Tensor]) -> str:
    """The largest block scale is a power of two; an absmax over 448 hardly ever is."""
    largest = from_e8m0(parts["weight_scale"]).max()
    return "largest" if bool(largest == parts["weight_scalar"].to(largest.device)) else "tight"


def _round_again(tensor: Tensor, form: str, seed: int | None) -> QuantizedTensor:
    """``tensor [M, N]`` rounded to hybrid MXFP8, as a tensor that runs."""
    from .registry import get_format

    fmt = get_format("hybrid_mxfp8")
    spec = fmt.bind(form=form)
    shape = (tensor.shape[0], tensor.shape[1])
    w = pad(tensor.to(torch.float32).contiguous(), *fmt.padding)
    scales = fmt.geometry(spec).scales(w, fmt.grid)
    generator = torch.Generator(w.device).manual_seed(seed) if seed and seed > 0 else None
    codes = encode(w, fmt.grid, scales, generator=generator)
    if fmt.stores_peak(spec):
        scales = with_peak(codes, fmt.grid, scales)
    packed = fmt.pack_scales(scales, spec, fmt.padded_shape(shape))
    parts = {"weight": fmt.pack_codes(codes, spec), **packed}
    return fmt.read(parts, fmt.conf(spec, shape), shape, tensor.dtype)
