"""What an error LoRA corrects, layer by layer."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

HOW_TO_APPLY = (
    "Apply it with ComfyUI's bypass loader, 'Load LoRA (Bypass)' or its model-only twin, at "
    "strength 1: the plain LoRA loader rounds patched weights again, which undoes the correction."
)


@dataclass(frozen=True)
class CorrectedLayer:
    """One quantized layer.

    Attributes:
        name: the layer, as the quantized file calls it.
        lora_name: what ComfyUI's loader calls it; "" where it is not corrected.
        rank: of the factors; 0 where it is not corrected.
        method: ``"weighted"`` by the inputs, ``"plain"`` or "".
        bias: whether its bias is corrected too.
        reason: why it is not weighted, or not corrected.
        weight_snr, weight_snr_after: dB; None where it was not looked at.
        output_snr, output_snr_after: dB on tokens set aside, activations exact; None without
            statistics.
        executed_snr, executed_snr_after: the same as this device runs the quantized layer, beside
            which the LoRA is exact.
    """

    name: str
    lora_name: str = ""
    rank: int = 0
    method: str = ""
    bias: bool = False
    reason: str = ""
    weight_snr: float | None = None
    weight_snr_after: float | None = None
    output_snr: float | None = None
    output_snr_after: float | None = None
    executed_snr: float | None = None
    executed_snr_after: float | None = None


@dataclass(frozen=True)
class ErrorLoraReport:
    """What an extraction did; prints as a table, saves as JSON."""

    path: str
    layers: tuple[CorrectedLayer, ...]
    bytes: int
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def corrected(self) -> tuple[CorrectedLayer, ...]:
        """The layers that are corrected."""
        return tuple(layer for layer in self.layers if layer.rank)

    def gain(self, what: str = "output") -> float | None:
        """Mean gain in dB over the corrected layers, of ``executed``, ``output`` or ``weight`` SNR.
        """
        pairs = [(getattr(x, f"{what}_snr"), getattr(x, f"{what}_snr_after"))
                 for x in self.corrected]  # fmt: skip
        gains = [b - a for a, b in pairs if a is not None and b is not None]
        finite = [gain for gain in gains if math.isfinite(gain)]
        return sum(finite) / len(finite) if finite else None

    def summary(self) -> str:
        """One line for a person."""
        weighted = sum(x.method == "weighted" for x in self.corrected)
        parts = [f"{len(self.corrected)} of {len(self.layers)} quantized layers corrected"]
        parts.append(f"{weighted} weighted by their inputs")
        said = {
            "executed": "output SNR as executed here",
            "output": "with exact activations",
            "weight": "weight SNR",
        }
        for what, words in said.items():
            gain = self.gain(what)
            if gain is not None:
                parts.append(f"{words} {gain:+.1f} dB")
        return f"{', '.join(parts)}; {self.bytes / 1e6:.1f} MB"

    def table(self) -> str:
        """All layers, one a line, then warnings, the summary and how to apply it."""
        rows = [("layer", "rank", "how", "weights dB", "outputs dB", "executed dB", "why")]
        for x in self.layers:
            rows.append(
                (
                    x.name,
                    str(x.rank or ""),
                    x.method + (" + bias" if x.bias else ""),
                    _pair(x.weight_snr, x.weight_snr_after),
                    _pair(x.output_snr, x.output_snr_after),
                    _pair(x.executed_snr, x.executed_snr_after),
                    x.reason,
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join([*lines, self.summary(), HOW_TO_APPLY])

    def json(self) -> str:
        """The report for machines; an infinite SNR is null."""
        data = asdict(self)
        for layer in data["layers"]:
            for key, value in layer.items():
                if isinstance(value, float) and not math.isfinite(value):
                    layer[key] = None
        gains = {f"{what}_gain": self.gain(what) for what in ("executed", "output", "weight")}
        return json.dumps({**data, **gains, "apply": HOW_TO_APPLY}, ensure_ascii=False)


def _pair(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    return f"{before:.1f} → {after:.1f}"
