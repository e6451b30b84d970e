"""Weights of every format as tensors that run, for tests that go over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor

from roundsmith.converters.rounding import nearest
from roundsmith.layouts import Format
from roundsmith.layouts.registry import formats


def _variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each format, with the options that make it run otherwise."""
    for name, fmt in formats().items():
        for variant in fmt.variants or (None,):
            yield name, {"variant": variant} if variant else {}
        for scaling in fmt.scalings[1:]:
            yield name, {"scaling": scaling}
        if fmt.rotates and not fmt.always_rotates:
            yield name, {"convrot": 64}


CASES = [
    pytest.param(name, options, id=" ".join([name, *map(str, options.values())]))
    for name, options in _variants()
]
"""Parameters ``name, options`` of a test over all formats."""


def stored(fmt: Format, w: Tensor, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict]:
    """File tensors of ``w`` by suffix, and the layer's JSON."""
    shape = (w.shape[0], w.shape[1])
    spec = fmt.fit(fmt.bind(features=shape[1], **options), shape).spec
    assert spec is not None
    grid = fmt.grid_for(spec)
    codes, scales = nearest(fmt.transform(w.clone(), spec), grid, fmt.geometry(spec))
    parts = {
        "weight": fmt.pack_codes(codes, spec),
        **fmt.pack_scales(scales, spec, fmt.padded_shape(shape)),
        **fmt.pack_grid(grid),
    }
    return parts, fmt.conf(spec, shape)


def quantized(
    fmt: Format, w: Tensor, options: dict[str, Any], dtype: torch.dtype = torch.float32
) -> QuantizedTensor:
    """``w`` (float32 ``[M, N]``) rounded to nearest, as a tensor of ``dtype`` that runs."""
    parts, conf = stored(fmt, w, options)
    return fmt.read(parts, conf, (w.shape[0], w.shape[1]), dtype)
