"""Judging roundings by what they do to inputs that nothing was fitted to."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...layouts.codec import decode
from ...layouts.geometries import Scales
from ...layouts.grids import Grid
from .problem import Activations

_EPS = 2.0**-23
_CLEARLY = 1 - 1e-9


class Candidate(NamedTuple):
    """A rounding of a layer, and how it came about (see :class:`Solution`)."""

    method: str
    codes: Tensor
    scales: Scales


class Judge:
    """Compares roundings of ``w`` by the squared error of the outputs.

    Outputs are those of the tokens set aside, non-finite ones left out; where there are none, of
    the tokens that were fitted to.

    Args:
        w: float32 ``[M, N]``.
        grid: what the codes mean.
        activations: the tokens.
    """

    def __init__(self, w: Tensor, grid: Grid, activations: Activations) -> None:
        held = activations.held
        self._w, self._grid = w, grid
        self._held = held[torch.isfinite(held).all(dim=1)]
        self._reach = _length(self._held)
        self._moment = activations.moment

    def best(self, candidates: list[Candidate]) -> Candidate:
        """The candidate with the least error; the first unless another is better beyond doubt,
        that is, in float64 where float32 cannot tell."""
        norms = [self._norm(c) for c in candidates] if len(self._held) else []
        if not norms or not all(math.isfinite(norm) for norm, _ in norms):
            errors = [self._exactly(c) for c in candidates]
            least = min(range(len(errors)), key=errors.__getitem__)
            return candidates[least if errors[least] < _CLEARLY * errors[0] else 0]
        least = min(range(len(norms)), key=lambda i: norms[i][0])
        (first, doubt), (other, another) = norms[0], norms[least]
        if least == 0 or other + another < first - doubt:
            return candidates[least]
        better = self._exactly(candidates[least]) < _CLEARLY * self._exactly(candidates[0])
        return candidates[least if better else 0]

    def _norm(self, candidate: Candidate) -> tuple[float, float]:
        """Norm of the outputs' error in float32, and by how much it may be off."""
        lost = decode(candidate.codes, self._grid, candidate.scales).sub_(self._w)
        n = max(lost.shape[1], 8)
        found = _length(self._held @ lost.t())
        doubt = n * _EPS * self._reach * _length(lost)
        underflow = 1e-37 * n * (len(self._held) * lost.shape[0]) ** 0.5
        return float(found), float(doubt) + underflow

    def _exactly(self, candidate: Candidate) -> float:
        """Squared error of the outputs in float64."""
        decoded = decode(candidate.codes, self._grid, candidate.scales)
        lost = decoded.double().sub_(self._w)
        if len(self._held):
            return float((self._held.double() @ lost.t()).square_().sum())
        return max(float((lost @ self._moment.double()).mul_(lost).sum()), 0.0)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64)
