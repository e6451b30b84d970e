"""What a solver is given besides weights, grid and geometry, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ...layouts.geometries import Scales

MIN_TOKENS = 64
"""Fewer than these, left to fit to, say too little of a layer's inputs to round against."""

Poll = Callable[[], None]
"""Called many times a second; an exception it raises ends the work."""


@dataclass(frozen=True, eq=False)
class Activations:
    """What a layer's inputs are like, in the domain that is rounded (rotated, padded).

    Attributes:
        moment: float32 ``[N, N]``, mean of x·xᵀ over the tokens to fit.
        count: how many tokens those were.
        held: float32 ``[h, N]``, tokens set aside: nothing is fitted to them; they decide what is
            kept. ``h`` may be 0.
        apart: they are of calls that nothing was fitted to, so that they tell how far to trust the
            moment; else they may be of the same sentences or pictures.
    """

    moment: Tensor
    count: int
    held: Tensor
    apart: bool = False


class Solution(NamedTuple):
    """Codes and scales, and how they came about.

    Attributes:
        codes: ``[M, N]`` of the grid's dtype.
        scales: as the geometry stores them.
        method: ``"nearest"``, ``"scale search"``, ``"calibrated"`` or ``"learned"``: what was kept
            in the end.
        note: why it is not what was asked for; or "".
        expected_gain: the gain over nearest that theory bounds, dB; None where it says nothing.
    """

    codes: Tensor
    scales: Scales
    method: str
    note: str = ""
    expected_gain: float | None = None
