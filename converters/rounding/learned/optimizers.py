"""Steps on positions ``[M, N]``, in place, from gradients in the weights' units.

A position moves the weight by ``unit`` a step of the ladder, so the gradient by position is the
weight's gradient times ``unit``. Nothing here is torch's: the rules are a few lines each, and
``torch.optim`` needs parameters that ``torch.inference_mode()`` does not give.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from .options import LearnedOptions
from .prodigy import Prodigy

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Optimizer(Protocol):
    """A rule of descent."""

    def step(self, positions: Tensor, gradient: Tensor, rate: float) -> None:
        """Move ``positions``; ``gradient`` (weights' units) may be overwritten."""
        ...


class Original:
    """Steps of a set length against the gradient, in the weights' units.

    The gradient of the error's *norm* has a constant size, so each step moves the weights by
    ``rate`` whatever the error: here ``rate`` steps of the grid, root mean square over the matrix,
    with each weight's gradient divided by its curvature.
    """

    def __init__(self, unit: Tensor, curvature: Tensor) -> None:
        self._typical = unit.square().mean().sqrt()
        self._curvature = curvature
        self._step = torch.where(unit > 0, 1 / (unit * curvature), 0.0)

    def step(self, positions: Tensor, gradient: Tensor, rate: float) -> None:
        positions_per = gradient * self._step
        length = torch.linalg.vector_norm(gradient.div_(self._curvature))
        factor = self._typical * math.sqrt(gradient.numel()) / length.clamp_(min=1e-30)
        positions.sub_(positions_per.mul_(factor * rate))


class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101) towards where the positions began."""

    def __init__(self, unit: Tensor, start: Tensor, weight_decay: float) -> None:
        self._unit, self._decay = unit, weight_decay
        self._start = start.clone() if weight_decay else start
        self._mean, self._square = torch.zeros_like(start), torch.zeros_like(start)
        self._steps = 0

    def step(self, positions: Tensor, gradient: Tensor, rate: float) -> None:
        self._steps += 1
        gradient.mul_(self._unit)
        if self._decay:
            positions.lerp_(self._start, min(rate * self._decay, 1.0))
        self._mean.lerp_(gradient, 1 - BETA1)
        self._square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        unbiased = math.sqrt(1 - BETA2**self._steps)
        torch.sqrt(self._square, out=gradient).div_(unbiased).add_(_tiny(gradient))
        positions.addcdiv_(self._mean, gradient, value=-rate / (1 - BETA1**self._steps))


class RAdam:
    """Rectified Adam (arXiv:1908.03265): plain momentum until the variance can be trusted."""

    def __init__(self, unit: Tensor, start: Tensor) -> None:
        self._unit = unit
        self._mean, self._square = torch.zeros_like(start), torch.zeros_like(start)
        self._steps = 0

    def step(self, positions: Tensor, gradient: Tensor, rate: float) -> None:
        self._steps += 1
        t = self._steps
        gradient.mul_(self._unit)
        self._mean.lerp_(gradient, 1 - BETA1)
        self._square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        rate = rate / (1 - BETA1**t)
        longest = 2 / (1 - BETA2) - 1
        length = longest - 2 * t * BETA2**t / (1 - BETA2**t)
        if length <= 5:
            positions.sub_(self._mean, alpha=rate)
            return
        rectified = math.sqrt(
            (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        )
        unbiased = math.sqrt(1 - BETA2**t)
        torch.sqrt(self._square, out=gradient).div_(unbiased).add_(_tiny(gradient))
        positions.addcdiv_(self._mean, gradient, value=-rate * rectified)


def _tiny(root: Tensor) -> Tensor:
    """Adam's epsilon, relative to the largest gradient: losses here have no fixed size."""
    return root.amax().mul_(EPSILON).clamp_(min=1e-30)


def make_optimizer(
    options: LearnedOptions, unit: Tensor, curvature: Tensor, start: Tensor
) -> Optimizer:
    """The optimizer the options ask for.

    Args:
        options: names it.
        unit: float32 ``[M, N]``, what a step of the ladder is in the weights' units; 0 where a
            weight cannot move.
        curvature: the objective's, broadcasts to ``[M, N]``.
        start: float32 ``[M, N]``, where the positions begin.
    """
    if options.optimizer == "original":
        return Original(unit, curvature)
    if options.optimizer == "adamw":
        return AdamW(unit, start, options.weight_decay)
    if options.optimizer == "radam":
        return RAdam(unit, start)
    return Prodigy(unit, start)
