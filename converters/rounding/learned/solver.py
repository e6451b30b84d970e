"""Learned rounding: codes found by gradient descent on a quadratic form of the weight error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....errors import RecipeError
from ....layouts.codec import decode, encode
from ....layouts.geometries import Geometry, Scales
from ....layouts.grids import Grid
from ..problem import MIN_TOKENS, Activations, Poll, Solution
from .descent import descend
from .flips import flip
from .ladder import Ladder
from .objectives import Objective, OutputError, ProjectedError, kept_rank, singular_vectors
from .options import LearnedOptions
from .problem import Layer, State
from .scales import learn, learns_scales, refit

FLIP_ROUNDS = 100


@torch.no_grad()
def learned(
    w: Tensor,
    grid: Grid,
    geometry: Geometry,
    activations: Activations | None,
    tensor_absmax: Tensor | None = None,
    options: LearnedOptions | None = None,
    seed: int = 0,
    poll: Poll | None = None,
) -> Solution:
    """Round each weight so that the objective, not each weight's own error, is least.

    Args:
        w: float32 ``[M, N]``, the whole matrix, transformed and padded to whole blocks; not
            changed.
        grid: the grid to round to.
        geometry: which weights share a scale.
        activations: the layer's inputs, or None. Tokens held out decide whether the learned codes
            are kept, whatever the objective.
        tensor_absmax: largest magnitude of the whole matrix, float32 ``[]``.
        options: what is minimised and how.
        seed: of the low-rank singular vectors. The same seed gives the same codes.
        poll: called every iteration; an exception it raises ends the work.

    Returns:
        Codes and scales: never a larger objective than :func:`nearest`'s, nor a larger output error
        on held-out tokens; where learning gains nothing, nearest's, with a note.

    Raises:
        RecipeError: the objective is ``activations`` and there are none.
    """
    options = options or LearnedOptions()
    scales = geometry.scales(w, grid, tensor_absmax)
    codes = encode(w, grid, scales)
    if options.objective == "activations" and activations is None:
        raise RecipeError(
            "LearnedOptions.objective: 'activations' needs a calibration that reached this layer; "
            "calibrate, or choose 'svd' or 'auto'"
        )
    reason = _unfit(w, activations, options)
    objective = None if reason else make_objective(w, activations, options, seed)
    if objective is None:
        return Solution(
            codes, scales, "nearest", reason or "the objective sees every weight alike"
        )
    layer = Layer(w, grid, geometry, Ladder(grid, w.device), objective, poll or _never)
    start = layer.nearest(scales)
    found = search(layer, start, options)
    if not found.cost < start.cost:
        return Solution(codes, scales, "nearest", "learning found no better codes")
    better = Solution(layer.codes(found.rungs), found.scales, "learned")
    if activations is not None and len(activations.held):
        ours = _output_error(w, grid, better.codes, better.scales, activations.held)
        theirs = _output_error(w, grid, codes, scales, activations.held)
        if not ours <= theirs:
            loss = 10 * math.log10(ours / theirs) if theirs > 0 else math.inf
            note = f"learned codes were {loss:.2f} dB worse on held-out tokens"
            return Solution(codes, scales, "nearest", note)
    return better


def search(layer: Layer, start: State, options: LearnedOptions) -> State:
    """The cheapest codes and scales that the options' search finds from ``start``."""
    rounds, flips = options.refine_rounds, options.flip_rounds
    if flips is None:
        flips = 0 if layer.objective.local else FLIP_ROUNDS
    iterations = -(-options.iterations // (rounds + 1))
    state = learn(layer, start) if learns_scales(layer, options) else start
    state = flip(layer, descend(layer, state, options, iterations), flips)
    for _ in range(rounds):
        scaled = refit(layer, state)
        begin = scaled.better_of(layer.nearest(scaled.scales))
        again = flip(layer, descend(layer, begin, options, iterations), flips)
        state = state.better_of(again)
    return state


def make_objective(
    w: Tensor, activations: Activations | None, options: LearnedOptions, seed: int
) -> Objective | None:
    """The objective the options ask for; None if nearest codes minimise it already."""
    if activations is not None and options.objective != "svd":
        return OutputError(activations.moment.float(), options.damping)
    shape = w.shape[0], w.shape[1]
    k = kept_rank(shape, options.top_p, options.min_k, options.max_k)
    if k >= max(shape):
        return None
    return ProjectedError(*singular_vectors(w, k, full=options.full_svd, seed=seed))


def _unfit(w: Tensor, activations: Activations | None, options: LearnedOptions) -> str:
    """Why there is nothing to learn from; or ""."""
    if not bool(w.any()):
        return "every weight is zero"
    if activations is None or options.objective == "svd":
        return ""
    if activations.count < MIN_TOKENS:
        return f"only {activations.count} calibrated tokens; {MIN_TOKENS} are needed"
    if not bool(torch.isfinite(activations.moment).all()):
        return "the calibration's second moment is not finite"
    if not bool(activations.moment.diagonal().mean() > 0):
        return "every calibrated input is zero"
    return ""


def _output_error(w: Tensor, grid: Grid, codes: Tensor, scales: Scales, x: Tensor) -> float:
    """Squared output error on tokens ``x [h, N]``."""
    error = decode(codes, grid, scales).sub_(w)
    return float((x.float() @ error.T).square_().sum(dtype=torch.float64))


def _never() -> None:
    """A poll that never ends the work."""
