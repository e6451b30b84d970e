"""Statistics of a layer's codes: of a sample of its rows, or of all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layouts.grids import CodebookGrid, Grid
from ..source import Source
from ..stored import StoredLayer, empty_parts, parts_of

SAMPLE = 64 << 10
"""Bytes of codes read of a layer, unless all are."""

_SPOTS = 4  # places in the weight the sample is taken from
_CHUNK = 4 << 20  # bytes in hand at once


@dataclass(frozen=True)
class CodeStats:
    """What a layer's codes are.

    Attributes:
        seen: how many were looked at.
        at_max: share of those at the grid's largest magnitude.
        zero: share of those worth zero.
        broken: how many are NaN or infinite.
        snr: dB of the weights, if each was rounded to the nearest value of its grid; inf where
            nothing is lost, None where all codes are zero. Scales do not enter: blocks count alike.
    """

    seen: int
    at_max: float
    zero: float
    broken: int
    snr: float | None


def code_stats(source: Source, stored: StoredLayer, deep: bool = False) -> CodeStats | None:
    """Statistics of a layer's codes; None where a sample cannot be told from its neighbours."""
    counts, grid, dtype = torch.zeros(256, dtype=torch.int64), None, torch.uint8
    for codes, grid in _pieces(source, stored, deep):  # noqa: B007 - the same in every piece
        dtype = codes.dtype
        flat = codes.contiguous().view(torch.uint8).reshape(-1)
        counts += torch.bincount(flat, minlength=256)
    if grid is None or not counts.any():
        return None
    present = counts.nonzero().flatten()
    return _stats(grid, present.to(torch.uint8).view(dtype), counts[present].double())


def _stats(grid: Grid, codes: Tensor, counts: Tensor) -> CodeStats:
    """Statistics of distinct codes that occur so often."""
    values = grid.decode(codes)
    finite = torch.isfinite(values)
    seen = float(counts.sum())
    broken = int(counts[~finite].sum())
    values, counts = values[finite], counts[finite]
    signal = float((values.double().square() * counts).sum())
    noise = float((spacing(grid, values).double().square() * counts).sum()) / 12
    snr = None if signal == 0 else 10 * math.log10(signal / noise) if noise else math.inf
    at_max = float(counts[values.abs() >= grid.max].sum())
    return CodeStats(
        int(seen), at_max / seen, float(counts[values == 0].sum()) / seen, broken, snr
    )


def spacing(grid: Grid, values: Tensor) -> Tensor:
    """Width of what is rounded to each of ``values`` of a grid, float32 of the same shape.

    At the ends of the grid it is taken to reach as far out as in.
    """
    if isinstance(grid, CodebookGrid):
        ordered = torch.unique(grid.tables(values.device).values)
        gaps = ordered.diff()
        width = (torch.cat((gaps[:1], gaps)) + torch.cat((gaps, gaps[-1:]))) / 2
        return width[torch.searchsorted(ordered, values.contiguous()).clamp_(max=len(ordered) - 1)]
    if not grid.mantissa_bits:
        return torch.ones_like(values)
    exponent = torch.frexp(values).exponent.sub_(1).clamp_(min=grid.min_exponent)
    return torch.ldexp(torch.ones_like(values), exponent - grid.mantissa_bits)


def _pieces(source: Source, stored: StoredLayer, deep: bool) -> Iterator[tuple[Tensor, Grid]]:
    fmt, conf, name = stored.format, stored.conf, stored.parts["weight"]
    empty = fmt.normalise(empty_parts(source, stored.parts), conf)["weight"]
    if empty.ndim != 2 or 0 in empty.shape or empty.shape[1] == 1:
        if deep:  # codes that are not in rows: of the whole layer
            encoded = fmt.unpack(parts_of(source, stored), conf)
            yield encoded.codes, encoded.grid
        return
    grid_parts = {s: source.read(n) for s, n in stored.parts.items() if s != "weight"}
    grid = fmt.grid_of({**grid_parts, "weight": empty}, conf)
    rows, row_bytes = empty.shape[0], empty.shape[1] * empty.dtype.itemsize
    for first, last in _ranges(rows, row_bytes, deep):
        piece = source.read_rows(name, first, last).view(empty.dtype)
        yield fmt.unpack_codes({**grid_parts, "weight": piece}, conf), grid


def _ranges(rows: int, row_bytes: int, deep: bool) -> Iterator[tuple[int, int]]:
    if deep:
        step = max(_CHUNK // row_bytes, 1)
        yield from ((first, min(first + step, rows)) for first in range(0, rows, step))
        return
    each = max(SAMPLE // _SPOTS // row_bytes, 1)
    if each * _SPOTS >= rows:
        yield 0, rows
        return
    for spot in range(_SPOTS):
        first = (rows - each) * spot // (_SPOTS - 1)
        yield first, first + each
