"""The report of a conversion: what happened to each layer, and why."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .plan import Plan, TensorPlan


@dataclass(frozen=True)
class Progress:
    """Where a conversion is.

    Attributes:
        layer: name of the tensor in hand.
        index, count: it is the ``index``-th of ``count``, from 1.
        bytes_done, bytes_total: source bytes behind, and of the whole.
    """

    layer: str
    index: int
    count: int
    bytes_done: int
    bytes_total: int


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
        weight_snr: 10·log10(‖W‖² / ‖W − Ŵ‖²) in dB, over up to a million sampled weights; None
            where the layer was not rounded, infinite where it lost nothing.
    """

    name: str
    action: str
    shape: tuple[int, ...]
    format: str
    stored_as: str
    reason: str
    bytes_before: int
    bytes_after: int
    weight_snr: float | None = None


@dataclass(frozen=True)
class Report:
    """What a conversion did; prints as a table, saves as JSON."""

    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...]
    preset: str
    evidence: str
    bytes_before: int
    bytes_after: int
    seconds: float = 0.0
    recipe: str = "{}"

    @property
    def quantized(self) -> int:
        """Number of layers that were quantized."""
        return sum(layer.action == "quantize" for layer in self.layers)

    @property
    def mean_snr(self) -> float | None:
        """Mean weight SNR over the quantized layers that lost something, dB."""
        values = [x.weight_snr for x in self.layers if x.weight_snr is not None]
        finite = [value for value in values if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else None

    def summary(self) -> str:
        """One line for a person."""
        formats = Counter(x.stored_as for x in self.layers if x.action == "quantize")
        kinds = ", ".join(f"{count} × {kind}" for kind, count in formats.most_common())
        kept = sum(x.action == "keep" for x in self.layers)
        saved = f"{human_bytes(self.bytes_before)} → {human_bytes(self.bytes_after)}"
        snr = "" if self.mean_snr is None else f", weight SNR {self.mean_snr:.1f} dB"
        return f"{saved}: {kinds or 'nothing quantized'}; {kept} kept{snr}"

    def table(self) -> str:
        """All layers as text, one a line, then the warnings and the summary."""
        rows = [("layer", "shape", "stored as", "bytes", "SNR dB", "why")]
        for x in self.layers:
            snr = "" if x.weight_snr is None else f"{x.weight_snr:.1f}"
            stored = x.stored_as or ("removed" if x.action == "remove" else "as it was")
            shape = "×".join(map(str, x.shape))
            rows.append((x.name, shape, stored, human_bytes(x.bytes_after), snr, x.reason))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True))
            + f"  {row[5]}"
            for row in rows
        ]
        lines.insert(1, "-" * len(lines[0]))
        lines = [line.rstrip() for line in lines]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join([*lines, f"model: {self.evidence or self.preset}", self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with infinite SNRs as None."""
        data = asdict(self)
        for layer in data["layers"]:
            if layer["weight_snr"] is not None and not math.isfinite(layer["weight_snr"]):
                layer["weight_snr"] = None
        return {**data, "quantized": self.quantized, "mean_snr": self.mean_snr}

    def json(self) -> str:
        """The report for machines."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


def make_report(
    plan: Plan, snr: dict[str, float], warnings: Iterable[str], seconds: float, recipe: str
) -> Report:
    """The report of a plan that was carried out. ``snr``: weight SNR by layer, dB."""
    layers = tuple(_layer(t, snr.get(t.layer)) for t in plan.tensors if t.action != "copy")
    return Report(
        layers,
        (*plan.warnings, *warnings),
        plan.preset,
        plan.evidence,
        sum(t.bytes_before for t in plan.tensors),
        sum(t.bytes_after for t in plan.tensors),
        seconds,
        recipe,
    )


def _layer(t: TensorPlan, snr: float | None) -> LayerReport:
    kept_format = str((t.conf or {}).get("format", "")) if t.spec is None else t.spec.format
    stored_as = t.spec.describe() if t.spec else kept_format
    return LayerReport(
        t.layer, t.action, t.shape, kept_format, stored_as, t.reason,
        t.bytes_before, t.bytes_after, snr,
    )  # fmt: skip


def human_bytes(count: float) -> str:
    """``1536`` → ``1.5 KB``; decimal units, as shops and browsers count."""
    for unit in ("B", "KB", "MB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
