"""Scales by gradient: fitted to codes, or learned before them, then rounded to storable ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ....layouts.geometries import RowLevelsRule, TwoLevelRule
from .ladder import Ladder
from .options import LearnedOptions
from .problem import Layer, State

_FIT_STEPS = 10
_LEARN_STEPS = 60
_LEARN_RATE = 0.03  # relative change of a scale in the first step
_FOUR_BITS = 16


def refit(layer: Layer, state: State) -> State:
    """Scales fitted to the codes and rounded to storable ones, where that lowers the objective.

    With codes given, the objective is quadratic in the effective scales: conjugate gradients, each
    block preconditioned by its own curvature.
    """
    values = layer.ladder.at(state.rungs)
    old = state.scales.effective
    bends = layer.gather(values.square().mul_(layer.objective.curvature.expand_as(values)))
    values = layer.ladder.at(state.rungs)
    inverse = torch.where(bends > 0, 1 / bends, 0.0)

    def slope(error: Tensor) -> Tensor:
        return layer.gather(layer.objective(error).gradient.mul_(values))

    change = torch.zeros_like(old)
    residual = -slope(layer.error(state.rungs, state.scales))
    toward = residual * inverse
    size = (residual * toward).sum()
    for _ in range(_FIT_STEPS):
        layer.poll()
        bent = slope(layer.spread(toward) * values)
        steep = (toward * bent).sum()
        if not bool(steep > 0):
            break
        length = size / steep
        change.add_(toward * length)
        residual.sub_(bent * length)
        scaled = residual * inverse
        size, before = (residual * scaled).sum(), size
        toward = scaled + toward * (size / before)
    wished = (old + change).clamp(min=old * 0.25, max=old * 4.0)
    scales = layer.geometry.rule.snap(torch.where(bends > 0, wished, old), state.scales.tensor)
    return state.better_of(State(state.rungs, scales, layer.parts(state.rungs, scales)))


def learn(layer: Layer, start: State) -> State:
    """Scales learned by gradient with codes that follow them (nearest), never worse than ``start``.

    The gradient by a scale passes rounding straight through: ``code − w/scale`` where a weight is
    in range, the largest code where it is clipped (learned step size quantization,
    arXiv:1902.08153). Steps are on logarithms, of a set size that falls to nothing, so that every
    block learns alike.
    """
    tensor, first = start.scales.tensor, start.scales.effective
    log, mean, square = (torch.zeros_like(first) for _ in range(3))
    best, state = start, start
    for step in range(1, _LEARN_STEPS + 1):
        layer.poll()
        scale = layer.spread(state.scales.effective)
        exact = torch.where(scale > 0, layer.w / scale, 0.0).clamp_(-layer.grid.max, layer.grid.max)
        clipped = exact.abs() >= layer.grid.max
        values = layer.ladder.at(state.rungs)
        follows = torch.where(clipped, values, values - exact)
        gradient = layer.objective(layer.error(state.rungs, state.scales)).gradient
        slope = layer.gather(gradient.mul_(follows)).mul_(first)
        mean.lerp_(slope, 0.1)
        square.mul_(0.99).addcmul_(slope, slope, value=0.01)
        root = (square / (1 - 0.99**step)).sqrt_()
        rate = _LEARN_RATE * (1 - (step - 1) / _LEARN_STEPS)
        log.addcdiv_(mean / (1 - 0.9**step), root.add_(root.amax() * 1e-8 + 1e-30), value=-rate)
        log.clamp_(-1.0, 1.0)
        state = layer.nearest(layer.geometry.rule.snap(first * log.exp(), tensor))
        best = best.better_of(state)
    return best


def learns_scales(layer: Layer, options: LearnedOptions) -> bool:
    """Whether scales are learned before codes: as asked, else for 4-bit grids under free scales."""
    if options.learn_scales is not None:
        return options.learn_scales
    rule = layer.geometry.rule
    return is_four_bit(layer.ladder) and not isinstance(rule, (TwoLevelRule, RowLevelsRule))


def is_four_bit(ladder: Ladder) -> bool:
    """Whether the grid has at most 16 values."""
    return len(ladder) <= _FOUR_BITS
