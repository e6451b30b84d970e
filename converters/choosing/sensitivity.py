"""What each way to store a layer costs: bytes, and the relative error of its outputs.

With statistics the error is that of the layer's outputs as executed: the weights' part, measured
with nearest codes on real tokens and divided by what calibrated rounding gains, plus what the
runtime adds by rounding the inputs. Without statistics it is the weights' relative error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import FormatError
from ...layouts import Spec, executed_linear, get_format
from ...layouts.codec import decode
from ..rounding import nearest
from .hull import Option

if TYPE_CHECKING:
    from ..calibration import Record

CALIBRATION_GAIN = 10**0.48
"""Calibrated rounding's gain over nearest, 4.6 to 5.2 dB in every format (docs/benchmarks.md)."""

_TOKENS = 256


@dataclass(frozen=True)
class Way:
    """A way to store a layer: its spec, or None for high precision as it is."""

    spec: Spec | None
    nbytes: int


def layer_options(
    w: Tensor, ways: Sequence[Way], record: Record | None, calibrated: bool, decodes: bool
) -> list[Option]:
    """The error of each way to store one layer.

    Args:
        w: float32 ``[M, N]``, on the device where it is tried.
        ways: the ways.
        record: statistics of its inputs, or None.
        calibrated: its codes will be calibrated on them.
        decodes: the runtime decodes every weight before its product.

    Returns:
        An option for each way; errors are relative to the outputs' energy, or without statistics to
        the weights'.
    """
    x = None if record is None else record.split().held[:_TOKENS].to(w.device, torch.float32)
    if x is None or not len(x) or not bool(torch.isfinite(x).all()):
        x = None
    return [Option(way.nbytes, _error(w, way.spec, x, calibrated, decodes)) for way in ways]


def _error(
    w: Tensor, spec: Spec | None, x: Tensor | None, calibrated: bool, decodes: bool
) -> float:
    if spec is None:
        return 0.0
    fmt = get_format(spec.format)
    moved = fmt.transform(w, spec)
    geometry, grid = fmt.geometry(spec), fmt.grid_for(spec)
    codes, scales = nearest(moved.clone(), grid, geometry)
    lost = moved - decode(codes, grid, scales)
    if x is None:
        return _ratio(lost, w)
    expected = x @ w.T
    weights = _ratio(fmt.transform_inputs(x, spec) @ lost.T, expected)
    inputs = 0.0
    if not (decodes or spec.full_precision_matrix_mult):
        shape = (w.shape[0], w.shape[1])
        parts = {
            "weight": fmt.pack_codes(codes, spec),
            **fmt.pack_scales(scales, spec, fmt.padded_shape(shape)),
            **fmt.pack_grid(grid),
        }
        try:
            weight = fmt.read(parts, fmt.conf(spec, shape), shape, torch.float32)
            got = executed_linear(fmt, weight, x).float()
        except FormatError:  # nothing here runs it; the loader says so
            return weights
        inputs = max(_ratio(expected - got, expected) - weights, 0.0)
    return weights / (CALIBRATION_GAIN if calibrated else 1.0) + inputs


def _ratio(error: Tensor, signal: Tensor) -> float:
    energy = float(signal.double().square().sum())
    return float(error.double().square().sum()) / energy if energy else 0.0
