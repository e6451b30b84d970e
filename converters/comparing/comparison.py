"""What a comparison found: as an object, a table, JSON, and a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import QualityError
from .scores import mean

WORST = 3
"""Layers named in a verdict."""


@dataclass(frozen=True)
class LayerScore:
    """One linear layer beside the reference's: SNRs in dB, infinite where nothing was lost.

    An output's SNR is 10·log10(‖XWᵀ‖² / ‖error‖²), X being a sample of what the layer sees in the
    reference; biases belong to the error only.

    Attributes:
        name: the layer.
        shape: outputs and inputs.
        stored_as: the quantized layer's format, or its dtype.
        weight: ‖W‖² over ‖W − Ŵ‖².
        exact: of the output with exact activations, so with the weights' errors only.
        executed: of the output as the layer really computes it on its device.
        tokens: rows of X.
        note: why a score is missing.
    """

    name: str
    shape: tuple[int, int]
    stored_as: str
    weight: float | None = None
    exact: float | None = None
    executed: float | None = None
    tokens: int = 0
    note: str = ""

    @property
    def score(self) -> float | None:
        """What counts: as executed, else with exact activations, else of the weights."""
        scores = (self.executed, self.exact, self.weight)
        return next((value for value in scores if value is not None), None)


@dataclass(frozen=True)
class StepScore:
    """A sampler's step, or a call of a module, from 1: SNRs in dB.

    Attributes:
        number: which one.
        latent: of the latent after the step; of the output of the call.
        denoised: of the picture the model predicts in it; None for a call.
    """

    number: int
    latent: float
    denoised: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A quantized model beside its reference; SNRs and PSNRs in dB.

    Attributes:
        snr: of ``what``; the number a threshold is held against.
        what: what ``snr`` is of.
        layers: scores by layer, the worst first.
        steps: scores by step, or by call.
        psnr: of ``psnr_what``; None where it was not measured.
        psnr_what: what ``psnr`` is of, and its peak.
        device: where the quantized layers ran.
        only_reference, only_quantized: layers the other model has not, or in another shape.
        notes: what a person should know.
        faults: why no threshold is reached, whatever ``snr`` is; it says nothing of these.
    """

    snr: float
    what: str
    layers: tuple[LayerScore, ...]
    steps: tuple[StepScore, ...] = ()
    psnr: float | None = None
    psnr_what: str = ""
    device: str = "cpu"
    only_reference: tuple[str, ...] = ()
    only_quantized: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def exact(self) -> float | None:
        """Mean SNR of the layers' outputs with exact activations, over those that lost something.
        """
        return mean(layer.exact for layer in self.layers)

    @property
    def executed(self) -> float | None:
        """Mean SNR of the layers' outputs as executed, over those that lost something."""
        return mean(layer.executed for layer in self.layers)

    def worst(self, count: int = WORST) -> tuple[LayerScore, ...]:
        """The layers that lost most; fewer where fewer lost anything."""
        lost = (x for x in self.layers if x.score is not None and x.score != math.inf)
        return tuple(lost)[:count]

    def passed(self, threshold: float | None) -> bool:
        """Whether ``snr`` reaches ``threshold`` dB, and has no faults; None: always."""
        return threshold is None or (self.snr >= threshold and not self.faults)

    def require(self, threshold: float | None, way_out: str = "") -> Comparison:
        """This comparison, if it reaches ``threshold`` dB and has no faults.

        Raises:
            QualityError: it does not; the message names the numbers, faults and the worst layers.
        """
        if threshold is None or self.passed(threshold):
            return self
        number = f"{self.what}: the SNR is {show(self.snr)}"
        if self.snr >= threshold:
            faults = "; ".join(self.faults)
            raise QualityError(f"{number}, which reaches {threshold:g} dB, but {faults}", self)
        words = [f"{number}, below {threshold:g} dB", *self.faults]
        if self.psnr is not None:
            words.append(f"PSNR {show(self.psnr)} ({self.psnr_what})")
        worst = self.worst()
        if worst:
            words.append(f"worst layers: {named(worst)}")
        words.append(
            way_out
            or "keep those layers in high precision (exclude), take a closer format, or calibrate"
        )
        raise QualityError("; ".join(words), self)

    def summary(self, count: int = WORST) -> str:
        """The numbers and the worst layers, a few lines."""
        lines = [f"{self.what}: SNR {show(self.snr)}"]
        if self.psnr is not None:
            lines[0] += f", PSNR {show(self.psnr)} ({self.psnr_what})"
        if self.exact is not None or self.executed is not None:
            lines.append(
                f"layers' outputs, mean: {show(self.exact)} with exact activations, "
                f"{show(self.executed)} as executed on {self.device}"
            )
        worst = self.worst(count)
        if worst:
            lines.append(f"worst layers: {named(worst)}")
        return "\n".join(lines)

    def table(self, worst: int | None = None) -> str:
        """Everything as text: steps, layers (the worst first, by default all), notes, summary."""
        lines = []
        if self.steps:
            with_denoised = any(step.denoised is not None for step in self.steps)
            head = ("step", "latent dB", "denoised dB") if with_denoised else ("call", "output dB")
            rows = [
                (str(s.number), _cell(s.latent), *([_cell(s.denoised)] if with_denoised else []))
                for s in self.steps
            ]
            lines += [*_columns([head, *rows], left=()), ""]
        shown = self.layers if worst is None else self.layers[:worst]
        if shown:
            layers = [
                (x.name, "×".join(map(str, x.shape)), x.stored_as, _cell(x.weight), _cell(x.exact),
                 _cell(x.executed), str(x.tokens or "-"), x.note)
                for x in shown
            ]  # fmt: skip
            titles = ("layer", "shape", "stored as", "weight dB", "exact dB", "executed dB",
                      "tokens", "")  # fmt: skip
            lines += _columns([titles, *layers], left=(0, 1, 2, 7))
        if len(shown) < len(self.layers):
            lines.append(f"... and {len(self.layers) - len(shown)} better ones")
        lines += [""] if lines else []
        if self.only_reference:
            lines.append(f"only in the reference: {listed(self.only_reference)}")
        if self.only_quantized:
            lines.append(f"only in the quantized model: {listed(self.only_quantized)}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """Plain data; an infinite score is None, and ``broken`` names layers that give NaN or Inf.
        """
        data = asdict(self)
        data["mean_exact"], data["mean_executed"] = self.exact, self.executed
        data["broken"] = [x.name for x in self.layers if x.score == -math.inf]
        return dict(_finite(data))

    def json(self) -> str:
        """For machines."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


def worst_first(layers: Iterable[LayerScore]) -> tuple[LayerScore, ...]:
    """Layers by falling loss; those without a score last."""
    return tuple(sorted(layers, key=lambda x: (x.score is None, x.score or 0.0, x.name)))


def show(value: float | None) -> str:
    """``36.2 dB``, or what an infinite score means."""
    if value is None:
        return "not measured"
    if math.isfinite(value):
        return f"{value:.1f} dB"
    return "∞ dB" if value > 0 else "−∞ dB (NaN or Inf)"


def named(layers: Sequence[LayerScore]) -> str:
    """``a (30.1 dB), b (31.0 dB)``, by the score that counts."""
    return ", ".join(f"{x.name} ({show(x.score)})" for x in layers)


def listed(names: Sequence[str], most: int = 5) -> str:
    """``a, b, c and 12 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if math.isfinite(value) else ("same" if value > 0 else "broken")


def _columns(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return lines


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
