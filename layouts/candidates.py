"""Options of a format that are worth considering where a format is chosen for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """A format's options, and the quality to expect of them.

    Attributes:
        options: as :meth:`Format.bind` takes them.
        snr: dB of the outputs with exact activations: calibrated codes on the layers of a trained
            transformer, other text than calibrated on (docs/benchmarks.md).
        executed: the same where the device multiplies codes, activations rounded as well.
        least: CUDA compute capability from which GPUs multiply the codes; None: every device
            decodes them first.
        most: the last compute capability that does, where newer ones do not.
        bits: of the operands of that product.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    snr: float = 0.0
    executed: float = 0.0
    least: tuple[int, int] | None = None
    most: tuple[int, int] | None = None
    bits: int = 8

    def multiplied(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability multiplies the codes."""
        within = self.most is None or capability <= self.most
        return self.least is not None and capability >= self.least and within
