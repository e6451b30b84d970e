"""Rounding without statistics: rows are read, rounded and written a cache's size at a time."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from ..layouts import Format, Spec, get_format
from ..layouts.codec import decode, with_peak
from ..layouts.geometries import Scales
from ..layouts.grids import CodebookGrid, Grid
from .outcome import Outcome, decibel
from .plan import TensorPlan
from .rounding import fit_codebook, nearest, scale_search
from .rows import Rows, check_finite
from .source import Sink

_SNR_CHUNKS = 4
_GRID_SAMPLE, _GRID_PLACES = 1 << 18, 64  # weights a codebook is fitted to, and where they lie


def quantize_rows(
    rows: Rows, t: TensorPlan, search: bool, sink: Sink, note: str = ""
) -> tuple[Outcome, dict[str, Tensor]]:
    """Round one layer to nearest and write it.

    Args:
        rows: reads the weights.
        t: the layer's plan.
        search: search each scale for the least squared error of its weights.
        sink: gets the codes as they are made, then the scales.
        note: why the layer is rounded this way, for the report.

    Returns:
        What it came to, and the scales as stored, by suffix.

    Raises:
        NonFiniteError: the layer holds NaN or Inf.
    """
    assert t.spec is not None
    began = time.perf_counter()
    spec, fmt = t.spec, get_format(t.spec.format)
    geometry = fmt.geometry(spec)
    whole = search and geometry.rows is None
    absmax = rows.absmax(t, fmt) if geometry.needs_tensor_absmax and not whole else None
    chunks = rows.chunks(t, math.lcm(geometry.row_step, fmt.padding[0]), whole)
    grid = _grid(rows, t, fmt, spec)
    sampled = {chunks[i * len(chunks) // _SNR_CHUNKS][0] for i in range(_SNR_CHUNKS)}

    def encode(start: int, stop: int) -> tuple[Scales, float, float]:
        """Round and write some rows; their scales, and signal and noise where sampled."""
        w = fmt.transform(rows.read(t, start, stop), spec)
        if search and absmax is None:
            check_finite(t, torch.maximum(-w.amin(), w.amax()))
        kept = w.clone() if start in sampled else None
        peak = None if absmax is None else absmax.to(w.device)
        if search:
            poll = rows.workers.poll
            codes, scales = scale_search(w, grid, geometry, peak, poll=poll)
        else:
            codes, scales = nearest(w, grid, geometry, peak)
        if absmax is None:
            check_finite(t, scales.block)
        if fmt.stores_peak(spec):
            scales = with_peak(codes, grid, scales)
        packed = fmt.pack_codes(codes, spec).cpu()
        sink.write_rows(f"{t.layer}.weight", fmt.packed_row(start, t.shape[1]), packed)
        signal = noise = 0.0
        if kept is not None:
            signal = float(kept.square().sum())
            noise = float(decode(codes, grid, scales).sub_(kept).square_().sum())
        return scales.to("cpu"), signal, noise

    results = rows.map(encode, chunks)
    parts = [part for part, _, _ in results]
    scales = parts[0] if geometry.rows is None else Scales.join(parts)
    padded = fmt.padded_shape((t.shape[0], t.shape[1]))
    stored = {**fmt.pack_scales(scales, spec, padded), **fmt.pack_grid(grid)}
    for suffix, part in stored.items():
        sink.write(f"{t.layer}.{suffix}", part)
    snr = decibel(sum(r[1] for r in results), sum(r[2] for r in results))
    method = "scale search" if search else "nearest"
    return Outcome(method, note, snr, seconds=time.perf_counter() - began), stored


def _grid(rows: Rows, t: TensorPlan, fmt: Format, spec: Spec) -> Grid:
    """The grid to round to: the format's, or one fitted to rows from all over the layer."""
    grid = fmt.grid_for(spec)
    if not fmt.own_grid(spec):
        return grid
    assert isinstance(grid, CodebookGrid)
    wanted = max(_GRID_SAMPLE // t.shape[1], 1)
    places = min(wanted, _GRID_PLACES)
    run = min(-(-wanted // places), -(-t.shape[0] // places))
    starts = sorted({i * max(t.shape[0] - run, 0) // max(places - 1, 1) for i in range(places)})

    def take(start: int, stop: int) -> Tensor:
        return fmt.transform(rows.read(t, start, stop), spec).clone()

    sample = rows.map(take, [(start, start + run) for start in starts])
    return fit_codebook(torch.cat(sample), grid, fmt.geometry(spec), poll=rows.tick)
