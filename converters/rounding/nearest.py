"""Nearest rounding under absmax scales: the baseline everything is compared with."""

from __future__ import annotations

from torch import Tensor

from ...layouts.codec import encode
from ...layouts.geometries import Geometry, Scales
from ...layouts.grids import Grid


def nearest(
    w: Tensor, grid: Grid, geometry: Geometry, tensor_absmax: Tensor | None = None
) -> tuple[Tensor, Scales]:
    """Round each weight to the nearest code.

    Args:
        w: float32 ``[M, N]``, transformed and padded; overwritten. Some rows of a matrix will do,
            if they are whole blocks and ``tensor_absmax`` is given where the geometry needs it.
        grid: the grid to round to.
        geometry: which weights share a scale.
        tensor_absmax: largest magnitude of the whole matrix, float32 ``[]``.

    Returns:
        Codes ``[M, N]`` and scales.
    """
    scales = geometry.scales(w, grid, tensor_absmax)
    return encode(w, grid, scales, inplace=True), scales
