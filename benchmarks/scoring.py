"""Signal-to-noise ratios, and bars that are met or not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Score(NamedTuple):
    """What is left of a layer: dB of its weights and of its outputs."""

    weights: float
    outputs: float


Scores = dict[str, Score]
"""By layer."""


def decibel(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB."""
    return 10 * math.log10(signal / noise) if noise else math.inf


def snr(reference: Tensor, other: Tensor) -> float:
    """dB of ``reference`` over its difference to ``other``."""
    reference = reference.double()
    noise = (reference - other.double()).square().sum().item()
    return decibel(reference.square().sum().item(), noise)


def score(
    weights: Mapping[str, Tensor], quantized: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> Scores:
    """Each layer's SNR.

    Output SNR is 10·log10(‖X·Wᵀ‖² / ‖X·(W − Ŵ)ᵀ‖²), from ``moments`` = ``XᵀX``.

    Raises:
        SystemExit: a layer was not quantized.
    """
    missing = sorted(set(weights) - set(quantized))
    if missing:
        raise SystemExit(f"not quantized: {', '.join(missing)}")
    found: Scores = {}
    for name, original in weights.items():
        w, h = original.double(), moments[name]
        lost = quantized[name].double() - w
        of_outputs = (((w @ h) * w).sum().item(), ((lost @ h) * lost).sum().item())
        of_weights = (w.square().sum().item(), lost.square().sum().item())
        found[name] = Score(decibel(*of_weights), decibel(*of_outputs))
    return found


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean."""
    listed = list(values)
    return sum(listed) / len(listed)


def overall(scores: Scores, layers: Iterable[str] | None = None) -> Score:
    """Mean over the layers, or over some of them."""
    chosen = [scores[name] for name in (scores if layers is None else layers)]
    return Score(mean(s.weights for s in chosen), mean(s.outputs for s in chosen))


@dataclass
class Bars:
    """What must be reached; prints each verdict as it falls."""

    verdicts: list[bool] = field(default_factory=list)

    def at_least(
        self, what: str, value: float, bar: float, unit: str = "dB", stretch: float | None = None
    ) -> None:
        """``value`` must not be below ``bar``; above ``stretch`` is said."""
        hoped = "" if stretch is None else f", stretch {stretch:g} {self._met(value >= stretch)}"
        self._print(value >= bar, f"{what}: {value:.2f} {unit} (bar ≥ {bar:g}{hoped})")

    def at_most(self, what: str, value: float, bar: float, unit: str) -> None:
        """``value`` must not be above ``bar``."""
        self._print(value <= bar, f"{what}: {value:.2f} {unit} (bar ≤ {bar:g})")

    @staticmethod
    def _met(reached: bool) -> str:
        return "reached" if reached else "not reached"

    def _print(self, passed: bool, text: str) -> None:
        self.verdicts.append(passed)
        print(f"  {'PASS' if passed else 'FAIL'}  {text}", flush=True)

    @property
    def status(self) -> int:
        """Exit status: 0 if every bar was met."""
        missed = len(self.verdicts) - sum(self.verdicts)
        print(f"{len(self.verdicts)} bars, {missed} missed")
        return 1 if missed else 0


def table(head: Iterable[str], lines: Iterable[Iterable[str]], first: int = 24) -> None:
    """Print rows under a head, the first column to the left, the others as wide as their head."""
    titles = list(head)
    widths = [first, *(max(len(t), 7) for t in titles[1:])]
    for line in (titles, *map(list, lines)):
        cells = [f"{line[0]:{first}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells), flush=True)
