"""Prodigy (arXiv:2306.06101, algorithm 4): Adam that estimates its own step size.

The estimate is the distance from the start to the solution, a lower bound of which follows from the
gradients seen; it only grows. With it a learning rate of 1 fits every layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_FIRST_DISTANCE = 1e-6
WARMUP_STEPS = 50
"""Steps in which the estimate still grows: schedules and early stopping wait for them."""


class Prodigy:
    """Prodigy's state for one matrix of positions.

    Args:
        unit: float32 ``[M, N]``, what a position's step is in the weights' units.
        start: float32 ``[M, N]``, where the positions begin.
    """

    def __init__(self, unit: Tensor, start: Tensor) -> None:
        self.distance = _FIRST_DISTANCE
        """The estimate, in steps of the ladder: how far the positions are from the solution."""
        self._unit, self._start = unit, start.clone()
        self._mean, self._square = torch.zeros_like(start), torch.zeros_like(start)
        self._sum = torch.zeros_like(start)
        self._gained = 0.0

    def step(self, positions: Tensor, gradient: Tensor, rate: float) -> None:
        """Move ``positions`` in place; ``gradient`` (weights' units) is overwritten."""
        gradient.mul_(self._unit)
        d, slow = self.distance, math.sqrt(_BETA2)
        weight = (d / _FIRST_DISTANCE) * d * rate * (1 - slow)
        moved = torch.dot(gradient.view(-1), (self._start - positions).view(-1))
        self._gained = slow * self._gained + weight * float(moved)
        self._sum.mul_(slow).add_(gradient, alpha=weight)
        self._mean.mul_(_BETA1).add_(gradient, alpha=d * (1 - _BETA1))
        self._square.mul_(_BETA2).addcmul_(gradient, gradient, value=d * d * (1 - _BETA2))
        travelled = float(self._sum.abs().sum())
        if travelled > 0:
            self.distance = d = max(d, self._gained / travelled)
        torch.sqrt(self._square, out=gradient)
        gradient.add_(max(float(gradient.amax()) * _EPSILON, 1e-30))
        positions.addcdiv_(self._mean, gradient, value=-rate * d)
