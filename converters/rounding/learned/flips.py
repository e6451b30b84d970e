"""Flips: codes moved to the next value where the gradient promises most, many at a time.

What every weight would gain by moving one step is read off the gradient and the curvature; those
that promise most move together. If that lowers the objective the next round is bolder; if not it is
taken back, and the next is pickier, down to a single weight. Where rows count separately, each row
is judged by itself.
"""

from __future__ import annotations

import torch

from .problem import Layer, State

_FIRST_SHARE = 0.5  # of the best gain, which a flip must promise
_BOLDER = 0.8
_PICKIEST = 0.999


def flip(layer: Layer, state: State, rounds: int) -> State:
    """``state`` after at most ``rounds`` rounds of one gradient each; never a larger objective."""
    if not rounds:
        return state
    curvature = layer.objective.curvature
    scale = layer.spread(state.scales.effective)
    low, high = layer.bounds(scale)
    living = layer.unit(state.scales) > 0
    rungs = state.rungs
    error = layer.error(rungs, state.scales)
    parts, gradient = layer.objective(error)
    share = torch.full_like(parts, _FIRST_SHARE)
    for _ in range(rounds):
        layer.poll()
        toward = (rungs - gradient.sign()).clamp_(low, high)
        change = layer.moved(rungs, toward, scale, state.scales)
        gain = -change * (2 * gradient + curvature * change)
        gain = torch.where(living, gain, 0.0)
        most = gain.amax(dim=1, keepdim=True) if len(parts) > 1 else gain.amax().view(1, 1)
        if not bool(((most > 0) & (share < _PICKIEST)).any()):
            break
        flipped = gain >= (share * most).clamp_(min=1e-30)
        tried = torch.where(flipped, change, 0.0).add_(error)
        now, slope = layer.objective(tried)
        better = now < parts
        rungs = torch.where(better & flipped, toward, rungs)
        error = torch.where(better, tried, error)
        gradient = torch.where(better, slope, gradient)
        parts = torch.where(better, now, parts)
        share = torch.where(better, share * _BOLDER, (1 + share) / 2)
    return state.better_of(State(rungs, state.scales, layer.parts(rungs, state.scales)))
