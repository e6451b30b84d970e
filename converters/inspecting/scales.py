"""Statistics of a layer's scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..source import Source
from ..stored import StoredLayer, empty_parts


@dataclass(frozen=True)
class ScaleStats:
    """The scales that a layer's codes are multiplied with.

    Attributes:
        count: how many.
        least, largest: of the magnitudes that are finite and not zero; 0 where none is.
        zero: how many are zero, which makes their codes worth nothing.
        broken: how many are NaN or infinite.
        negative: how many are below zero.
        one: all are exactly 1.0, as of codes that were cast without scaling.
    """

    count: int
    least: float
    largest: float
    zero: int = 0
    broken: int = 0
    negative: int = 0
    one: bool = False


def scale_stats(source: Source, stored: StoredLayer) -> ScaleStats:
    """Read a layer's scales, not its codes. Raises FormatError where they cannot be read."""
    return stats_of(read_scales(source, stored))


def read_scales(source: Source, stored: StoredLayer) -> Tensor:
    """What codes are multiplied with, float32, one a block; blocks of padding left out."""
    fmt, conf = stored.format, stored.conf
    parts = empty_parts(source, {"weight": stored.parts["weight"]})
    parts.update({s: source.read(name) for s, name in stored.parts.items() if s != "weight"})
    encoded = fmt.unpack(parts, conf)
    scales = encoded.scales.effective
    shape = fmt.orig_shape(fmt.normalise(parts, conf), conf)
    if scales.ndim != 2 or scales.numel() == 1:
        return scales
    blocks = [
        -(-size // max(-(-padded // have), 1))
        for size, padded, have in zip(shape, encoded.codes.shape, scales.shape, strict=True)
    ]
    return scales[: blocks[0], : blocks[1]]


def stats_of(scales: Tensor) -> ScaleStats:
    """Statistics of float32 scales of any shape."""
    flat = scales.detach().float().reshape(-1)
    finite = torch.isfinite(flat)
    magnitude = flat[finite & (flat != 0)].abs()
    empty = magnitude.numel() == 0
    return ScaleStats(
        flat.numel(),
        0.0 if empty else float(magnitude.min()),
        0.0 if empty else float(magnitude.max()),
        int((flat == 0).sum()),
        int((~finite).sum()),
        int((flat < 0).sum()),
        bool((flat == 1).all()),
    )
