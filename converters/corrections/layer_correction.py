"""The correction of one layer: factors, bias, and what they are worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ...errors import FormatError
from ..calibration import Record
from ..rounding import MIN_TOKENS
from .bias import bias_correction
from .error_lora import error_lora

_EXECUTED_TOKENS = 256


class Correction(NamedTuple):
    """What makes a quantized layer nearer to the original, and how near it gets.

    Attributes:
        a, b: factors ``[r, N]`` and ``[M, r]``; None where nothing is corrected.
        bias: ``[M]``, what to add to the quantized layer's bias; None: nothing.
        method: ``"weighted"`` by the layer's inputs, ``"plain"``, or "".
        note: why it is not weighted, or why there is nothing to correct; or "".
        weights: weight SNR before and after, dB.
        outputs: output SNR before and after on tokens set aside, activations exact, dB; None
            without statistics.
        executed: the same as ``run`` computes the quantized layer; None where it was not given.
    """

    a: Tensor | None
    b: Tensor | None
    bias: Tensor | None
    method: str
    note: str
    weights: tuple[float, float]
    outputs: tuple[float, float] | None
    executed: tuple[float, float] | None = None


Run = Callable[[Tensor], Tensor]
"""Outputs ``[T, M]`` of a quantized layer without its bias for inputs ``[T, N]``, as the device
runs it."""


def correct_layer(
    w: Tensor,
    w_hat: Tensor,
    rank: int,
    record: Record | None = None,
    bias_error: Tensor | None = None,
    seed: int = 0,
    run: Run | None = None,
) -> Correction:
    """The best correction of rank ``rank``: weighted by the layer's inputs where that is better on
    tokens set aside.

    Args:
        w, w_hat: float32 ``[M, N]``, the original and the decoded quantized weight.
        rank: of the factors.
        record: statistics of the layer's inputs; None: weights alone are looked at.
        bias_error: float32 ``[M]``, original bias − quantized bias, where they differ: the
            quantized one already takes up the mean error, which factors alone would correct twice.
        seed: as in :func:`error_lora`.
        run: computes the quantized layer, to score it as executed too.

    Raises:
        ValueError: NaN or Inf in the weights.
    """
    error = w - w_hat
    before = _decibel(w, error)
    note = why_plain(record)
    scorer = None if note or record is None else _Scorer(record, w)
    base = None if scorer is None or not scorer.held.shape[0] else scorer.score(error, bias_error)
    if not bool(error.any()) and (bias_error is None or not bool(bias_error.any())):
        outputs = None if base is None else (base, base)
        return Correction(None, None, None, "", "nothing was lost", (before, before), outputs)
    found = [_attempt("plain", w, w_hat, rank, None, bias_error, scorer, seed)]
    if scorer is not None:
        found.append(_attempt("weighted", w, w_hat, rank, scorer.moment, bias_error, scorer, seed))
        if base is not None and found[0].after >= found[1].after:
            note = "weighted is no better on tokens set aside"
            del found[1]
    best = found[-1]
    weights = before, _decibel(w, error - best.b @ best.a)
    made = Correction(best.a, best.b, best.bias, best.method, note, weights, None)
    if base is None or scorer is None:
        return made
    executed = None
    if run is not None:
        with suppress(FormatError):  # the installed comfy-kitchen cannot run it
            executed = scorer.executed(run, best, bias_error)
    return made._replace(outputs=(base, best.after), executed=executed)


class _Attempt(NamedTuple):
    method: str
    a: Tensor
    b: Tensor
    bias: Tensor | None
    after: float  # output SNR; 0 where it is not known


def _attempt(
    method: str,
    w: Tensor,
    w_hat: Tensor,
    rank: int,
    moment: Tensor | None,
    bias_error: Tensor | None,
    scorer: _Scorer | None,
    seed: int,
) -> _Attempt:
    a, b = error_lora(w, w_hat, rank, moment, seed)
    if scorer is None:
        return _Attempt(method, a, b, bias_error, 0.0)
    nearer = w_hat + b @ a
    if bias_error is None:
        return _Attempt(method, a, b, None, scorer.score(w - nearer, None))
    left = bias_correction(w, nearer, scorer.mean)
    return _Attempt(method, a, b, bias_error + left, scorer.score(w - nearer, -left))


def why_plain(record: Record | None) -> str:
    """Why a layer's correction is not weighted by its inputs, or ""."""
    if record is None:
        return "no statistics"
    tokens = record.summary.available
    if tokens < MIN_TOKENS:
        return f"only {tokens} tokens of statistics"
    return record.problem()


class _Scorer:
    """Output errors on the tokens set aside."""

    def __init__(self, record: Record, w: Tensor) -> None:
        activations = record.split(w.device)
        self.mean = record.fitted_mean().to(w)
        self.moment = activations.moment
        self.held = activations.held
        self.signal = self.held @ w.T

    def score(self, error: Tensor, bias: Tensor | None) -> float:
        """Output SNR where weights are off by ``error`` and biases by ``bias``, dB."""
        lost = self.held @ error.T
        return _decibel(self.signal, lost if bias is None else lost + bias)


    def executed(
        self, run: Run, best: _Attempt, bias_error: Tensor | None
    ) -> tuple[float, float]:
        """Output SNR as executed, before and after the correction, dB."""
        x = self.held[:_EXECUTED_TOKENS]
        signal = self.signal[:_EXECUTED_TOKENS]
        lost = signal - run(x).float()
        if bias_error is not None:
            lost = lost + bias_error
        left = lost - x @ best.a.T @ best.b.T
        if best.bias is not None:
            left = left - best.bias
        return _decibel(signal, lost), _decibel(signal, left)


def _decibel(signal: Tensor, noise: Tensor) -> float:
    power, lost = (float(vector_norm(x, dtype=torch.float64)) ** 2 for x in (signal, noise))
    if not lost:
        return math.inf
    return 10 * math.log10(power / lost) if power else -math.inf
