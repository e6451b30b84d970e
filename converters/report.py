"""The report of a conversion: what happened to each layer, and why."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .outcome import Outcome
from .plan import Plan, TensorPlan
from .progress import human_bytes
from .recipe import METADATA_KEY

_RATE = "(N²M+N³)·10⁻⁹/s"


@dataclass(frozen=True)
class LayerReport:
    """What happened to one weight.

    Attributes:
        name: the layer.
        action: ``quantize``, ``keep`` or ``remove``.
        shape: its logical shape.
        format: the stored format's id, or "" where it is in high precision.
        stored_as: the format with its options.
        reason: why it is kept or removed, or is not stored just as asked.
        bytes_before, bytes_after: with scales.
        outcome: how it was rounded and what it lost; None where it was not rounded.
    """

    name: str
    action: str
    shape: tuple[int, ...]
    format: str
    stored_as: str
    reason: str
    bytes_before: int
    bytes_after: int
    outcome: Outcome | None = None

    @property
    def weight_snr(self) -> float | None:
        """See :class:`~roundsmith.converters.outcome.Outcome`."""
        return None if self.outcome is None else self.outcome.weight_snr


@dataclass(frozen=True)
class Report:
    """What a conversion did; prints as a table, saves as JSON.

    ``recipe`` is its JSON, ``choice`` why its format was chosen, where that was left to us.
    """

    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...]
    preset: str
    evidence: str
    bytes_before: int
    bytes_after: int
    seconds: float = 0.0
    recipe: str = "{}"
    choice: str = ""

    @property
    def quantized(self) -> int:
        """Number of layers that were quantized."""
        return sum(layer.action == "quantize" for layer in self.layers)

    @property
    def outcomes(self) -> list[Outcome]:
        """How the layers that were rounded came out."""
        return [layer.outcome for layer in self.layers if layer.outcome is not None]

    @property
    def mean_snr(self) -> float | None:
        """Mean weight SNR over the quantized layers that lost something, dB."""
        return _mean(x.weight_snr for x in self.outcomes)

    @property
    def mean_output_snr(self) -> float | None:
        """Mean output SNR with exact activations over the layers whose inputs were measured, dB."""
        return _mean(x.output_snr for x in self.outcomes)

    @property
    def mean_executed_snr(self) -> float | None:
        """Mean output SNR as this device runs the layers whose inputs were measured, dB."""
        return _mean(x.executed_snr for x in self.outcomes)

    @property
    def mean_gain(self) -> float | None:
        """Mean gain in output SNR over nearest rounding, dB."""
        return _mean(x.gain for x in self.outcomes)

    def methods(self) -> str:
        """How many layers were rounded in which way: ``30 × calibrated, 2 × nearest``."""
        counted = Counter(x.method for x in self.outcomes).most_common()
        return ", ".join(f"{count} × {method}" for method, count in counted)

    def summary(self) -> str:
        """One line for a person."""
        formats = Counter(x.stored_as for x in self.layers if x.action == "quantize")
        kinds = ", ".join(f"{count} × {kind}" for kind, count in formats.most_common())
        kept = sum(x.action == "keep" for x in self.layers)
        saved = f"{human_bytes(self.bytes_before)} → {human_bytes(self.bytes_after)}"
        quality = "; ".join(filter(None, (self.methods(), self.quality())))
        line = f"{saved}: {kinds or 'nothing quantized'}; {kept} kept"
        return f"{line}; {quality}" if quality else line

    def quality(self) -> str:
        """The mean SNRs: as executed on this device first, where inputs were measured."""
        if self.mean_executed_snr is None or self.mean_output_snr is None:
            return "" if self.mean_snr is None else f"weight SNR {self.mean_snr:.1f} dB"
        gain = "" if self.mean_gain is None else f", {self.mean_gain:+.1f} dB over nearest"
        return (
            f"output SNR {self.mean_executed_snr:.1f} dB as executed here "
            f"({self.mean_output_snr:.1f} with exact activations{gain})"
        )

    def table(self) -> str:
        """All layers as text, one a line, then the warnings and the summary."""
        measured = any(x.output_snr is not None for x in self.outcomes)
        titles = ["layer", "shape", "stored as", "bytes", "rounding", "weights dB"]
        titles += ["outputs dB", "executed dB", "gain dB", "bound dB"] if measured else []
        titles += ["s", _RATE] if measured else ["s"]
        rows = [[*titles, "why"]]
        for x in self.layers:
            stored = x.stored_as or ("removed" if x.action == "remove" else "as it was")
            shape = "×".join(map(str, x.shape))
            row = [x.name, shape, stored, human_bytes(x.bytes_after)]
            rows.append([*row, *_cells(x, measured), x.reason])
        widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            + f"  {row[-1]}"
            for row in rows
        ]
        lines.insert(1, "-" * len(lines[0]))
        lines = [line.rstrip() for line in lines]
        if measured:
            lines.append(f"{_RATE}: the work on a layer grows as N²M + N³, M outputs and N inputs")
        lines += [f"warning: {text}" for text in self.warnings]
        lines += self.choice.splitlines()
        return "\n".join([*lines, f"model: {self.evidence or self.preset}", self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with infinite SNRs as None."""
        data = asdict(self)
        for layer in data["layers"]:
            outcome = layer.pop("outcome") or {}
            outcome.pop("note", None)
            layer.update({name: _finite(value) for name, value in outcome.items()})
        totals = {
            "quantized": self.quantized,
            "mean_snr": self.mean_snr,
            "mean_output_snr": self.mean_output_snr,
            "mean_executed_snr": self.mean_executed_snr,
            "mean_gain": self.mean_gain,
        }
        return {**data, **totals}

    def json(self) -> str:
        """The report for machines."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


def make_report(
    plan: Plan,
    outcomes: Mapping[str, Outcome],
    warnings: Iterable[str],
    seconds: float = 0.0,
) -> Report:
    """The report of a plan that was carried out. ``outcomes``: by layer."""
    layers = tuple(_layer(t, outcomes.get(t.layer)) for t in plan.tensors if t.action != "copy")
    return Report(
        layers,
        (*plan.warnings, *warnings),
        plan.preset,
        plan.evidence,
        sum(t.bytes_before for t in plan.tensors),
        sum(t.bytes_after for t in plan.tensors),
        seconds,
        plan.metadata[METADATA_KEY],
        "" if plan.choice is None else plan.choice.table(),
    )


def _layer(t: TensorPlan, outcome: Outcome | None) -> LayerReport:
    kept_format = str((t.conf or {}).get("format", "")) if t.spec is None else t.spec.format
    stored_as = t.spec.describe() if t.spec else kept_format
    note = "" if outcome is None else outcome.note
    reason = "; ".join(filter(None, (t.reason, note)))
    return LayerReport(
        t.layer, t.action, t.shape, kept_format, stored_as, reason,
        t.bytes_before, t.bytes_after, outcome,
    )  # fmt: skip


def _cells(layer: LayerReport, measured: bool) -> list[str]:
    """A layer's columns of the table that say how it was rounded."""
    x = layer.outcome
    if x is None:
        return [""] * (8 if measured else 3)
    columns = [x.output_snr, x.executed_snr, x.gain, x.expected_gain] if measured else []
    numbers = ["" if v is None else f"{v:.1f}" for v in (x.weight_snr, *columns)]
    cells = [x.method, *numbers, f"{x.seconds:.2f}"]
    return [*cells, _rate(layer.shape, x)] if measured else cells


def _rate(shape: tuple[int, ...], outcome: Outcome) -> str:
    """What a layer's rounding costs grows with, N²·M + N³, over the seconds it took, in 10⁹."""
    if outcome.expected_gain is None or len(shape) != 2 or not outcome.seconds:
        return ""
    m, n = shape
    return f"{n * n * (m + n) / outcome.seconds / 1e9:.3g}"


def _mean(values: Iterable[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
