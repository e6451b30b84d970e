"""How far tensors are from those they should equal: powers summed over pieces, ratios in dB."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import RoundsmithError

_AT_ONCE = 2**22  # values


@dataclass
class Power:
    """Power of a signal and of its error, summed over any number of tensors.

    Attributes:
        signal: sum of the reference's squares.
        noise: sum of the error's squares.
        count: values seen.
        low, high: least and greatest value of the reference.
    """

    signal: float = 0.0
    noise: float = 0.0
    count: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Add a tensor and what stands for it: same shape, any floating dtypes and devices.

        Raises:
            RoundsmithError: the shapes differ.
        """
        if reference.shape != other.shape:
            raise RoundsmithError(
                f"a tensor of shape {list(reference.shape)} cannot be compared with one of "
                f"{list(other.shape)}: give both models the same inputs"
            )
        others = other.detach().reshape(-1).split(_AT_ONCE)
        for a, b in zip(reference.detach().reshape(-1).split(_AT_ONCE), others, strict=True):
            signal = _wide(a)
            self.add_error(signal, _wide(b).to(signal.device) - signal)

    def add_error(self, signal: Tensor, error: Tensor) -> None:
        """Add a tensor and its error, which need not have its shape."""
        if not signal.numel():
            return
        low, high = torch.aminmax(signal)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.signal += _squares(signal)
        self.noise += _squares(error)
        self.count += signal.numel()

    @property
    def snr(self) -> float:
        """10·log10(signal / noise) in dB; infinite without an error, −infinite where it is NaN."""
        return decibels(self.signal, self.noise)

    def psnr(self, peak: float | None = None) -> float:
        """10·log10(peak² / mean squared error) in dB; by default the peak is ``high − low``."""
        peak = self.high - self.low if peak is None else peak
        return decibels(peak * peak, self.noise / max(self.count, 1))


def decibels(signal: float, noise: float) -> float:
    """A ratio of powers in dB: infinite without noise, −infinite without a signal or with NaN."""
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -math.inf
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal > 0 else -math.inf


def is_broken(value: float | None) -> bool:
    """Whether a score tells of NaN or Inf, or of a signal that was lost altogether."""
    return value is not None and (value == -math.inf or math.isnan(value))


def signal_to_noise(reference: Tensor, other: Tensor) -> float:
    """10·log10(‖reference‖² / ‖reference − other‖²) in dB; infinite where both are equal."""
    power = Power()
    power.add(reference, other)
    return power.snr


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite ones of ``values``; infinite where every one is; None without any.

    One that is −infinite, or NaN, makes the mean −infinite: what is broken is not averaged away.
    """
    known = [value for value in values if value is not None]
    if any(is_broken(value) for value in known):
        return -math.inf
    finite = [value for value in known if math.isfinite(value)]
    if finite:
        return sum(finite) / len(finite)
    return math.inf if known else None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _squares(x: Tensor) -> float:
    return float(x.square().sum())
