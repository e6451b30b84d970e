"""Gradient descent on codes.

Each weight has a continuous position on the grid's ladder. It starts at the unrounded weight, whose
rounding is the nearest code, and is moved by the gradient **at the rounded weights** (the
straight-through estimator): the error that rounding leaves keeps pushing until a code flips, and
as the rate falls the codes settle. The loss is therefore that of real codes at every step, and the
best codes seen are what is returned. (Descending on unrounded weights, as the method is usually
described, ends where the weights began, and rounds to the nearest codes plus noise.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....layouts.geometries import Scales
from .optimizers import BETA1, BETA2, make_optimizer
from .options import LearnedOptions
from .problem import Layer, State
from .prodigy import WARMUP_STEPS
from .schedules import Improvement, make_schedule
from .stopping import EarlyStop

_SCALE_SHARE = 0.1  # of the codes' rate, relative to the scale


def descend(layer: Layer, start: State, options: LearnedOptions, iterations: int) -> State:
    """The best codes (and scales, with ``joint_scales``) seen in a run of ``iterations`` steps.

    Where rows count separately the best codes are kept row by row. Never costs more than ``start``.
    """
    scale = layer.spread(start.scales.effective)
    positions = layer.positions(scale)
    low, high = layer.bounds(scale)
    unit = layer.unit(start.scales)
    optimizer = make_optimizer(options, unit, layer.objective.curvature, positions)
    joint = JointScales(layer, start.scales) if options.joint_scales else None
    best = Best(start, together=joint is not None and layer.rows_share_scales)
    schedule, progress = make_schedule(options, layer.shape), Improvement.of(options)
    stop = EarlyStop(options, WARMUP_STEPS if options.optimizer == "prodigy" else 0)
    rate = options.rate
    rungs, error = torch.empty_like(positions), torch.empty_like(positions)
    scales = start.scales
    for _ in range(iterations):
        layer.poll()
        torch.round(positions, out=rungs)
        values = layer.ladder.at(rungs)
        error = layer.decoded(values, scale, scales, out=error).sub_(layer.w)
        parts, gradient = layer.objective(error)
        loss = math.sqrt(max(float(parts.sum()), 0.0))
        best.see(rungs, scales, parts)
        rate = schedule.next(rate, progress.see(loss), progress)
        if stop.reason(loss, rate, progress, best.cost) is not None:
            break
        if joint is not None:
            scales = joint.step(gradient, values, rate * _SCALE_SHARE)
            scale = layer.spread(scales.effective)
        optimizer.step(positions, gradient, rate)
        positions.clamp_(low, high)
    return best.state()


class Best:
    """The best codes seen, by row where rows count separately.

    Args:
        start: what there is to beat.
        together: whether rows share scales that are learned too, and so are kept together.
    """

    def __init__(self, start: State, together: bool) -> None:
        self._rungs, self._scales, self._parts = start.rungs.clone(), start.scales, start.parts
        self._together = together

    def see(self, rungs: Tensor, scales: Scales, parts: Tensor) -> None:
        """Keep what is better of this."""
        if self._together:
            if bool(parts.sum() < self._parts.sum()):
                self._rungs.copy_(rungs)
                self._scales, self._parts = scales, parts
            return
        better = parts < self._parts
        if scales is not self._scales:
            block = torch.where(better, scales.block, self._scales.block)
            self._scales = scales._replace(block=block)
        torch.where(better, rungs, self._rungs, out=self._rungs)
        self._parts = torch.where(better, parts, self._parts)

    def cost(self) -> float:
        """The objective of what is kept."""
        return float(self._parts.sum())

    def state(self) -> State:
        """What was kept."""
        return State(self._rungs, self._scales, self._parts)


class JointScales:
    """Effective scales that move with the codes: Adam on their logarithms, rounded to what the
    format stores at every step.
    """

    def __init__(self, layer: Layer, scales: Scales) -> None:
        self._layer, self._tensor = layer, scales.tensor
        self._first = scales.effective
        self._log = torch.zeros_like(self._first)
        self._mean, self._square = torch.zeros_like(self._log), torch.zeros_like(self._log)
        self._steps = 0

    def step(self, gradient: Tensor, values: Tensor, rate: float) -> Scales:
        """The next scales.

        Args:
            gradient: by each weight, ``[M, N]``.
            values: the codes' values, ``[M, N]``.
            rate: relative change of a scale, about.
        """
        self._steps += 1
        slope = self._layer.gather(gradient * values).mul_(self._first)
        self._mean.lerp_(slope, 1 - BETA1)
        self._square.mul_(BETA2).addcmul_(slope, slope, value=1 - BETA2)
        mean = self._mean / (1 - BETA1**self._steps)
        root = (self._square / (1 - BETA2**self._steps)).sqrt_()
        self._log.addcdiv_(mean, root.add_(root.amax() * 1e-8 + 1e-30), value=-rate)
        self._log.clamp_(-1.0, 1.0)
        return self._layer.geometry.rule.snap(self._first * self._log.exp(), self._tensor)
