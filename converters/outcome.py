"""What rounding one layer came to."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How a layer was rounded, and what it lost. SNRs are dB, infinite where nothing was lost.

    Attributes:
        method: ``nearest``, ``scale search``, ``calibrated`` or ``learned``.
        note: why it is not what was asked for, and where it ran if not as asked; or "".
        weight_snr: 10·log10(‖W‖² / ‖W − Ŵ‖²), over up to a million sampled weights.
        output_snr: 10·log10(‖X·Wᵀ‖² / ‖X·(W − Ŵ)ᵀ‖²) on inputs X set aside from the statistics,
            with exact activations; None without statistics.
        executed_snr: the same with the product as this device runs it, activations rounded where it
            rounds them.
        nearest_snr: ``output_snr`` that nearest rounding would have had.
        expected_gain: the gain over nearest that theory bounds, dB.
        tokens: tokens of the statistics it was fitted to.
        input_max: largest magnitude among the layer's inputs.
        input_scale: the ``input_scale`` that was stored.
        seconds: time taken.
    """

    method: str
    note: str = ""
    weight_snr: float | None = None
    output_snr: float | None = None
    executed_snr: float | None = None
    nearest_snr: float | None = None
    expected_gain: float | None = None
    tokens: int = 0
    input_max: float | None = None
    input_scale: float | None = None
    seconds: float = 0.0

    @property
    def gain(self) -> float | None:
        """Gain in output SNR over nearest rounding, dB; None where nearest loses nothing, or
        inputs were not measured.
        """
        if self.output_snr is None or self.nearest_snr is None:
            return None
        return self.output_snr - self.nearest_snr if math.isfinite(self.nearest_snr) else None


def decibel(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB; infinite without noise or without signal."""
    return 10 * math.log10(signal / noise) if signal and noise else math.inf
