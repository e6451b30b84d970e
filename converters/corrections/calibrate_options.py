"""Settings of ``calibrate``, and what it reports."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ..matching import check_pattern
from ..strict import Strict
from .input_scales import LARGEST, SMALLEST

Mode = Literal["measured", "random", "lora", "import", "weight", "constant"]

MEANING = {
    "measured": "measured on the model's own inputs",
    "random": "estimate from random inputs; no measured activations",
    "lora": "estimate from LoRA directions; no measured activations",
    "import": "imported from another file",
    "weight": "equal to the weight scale",
    "constant": "the same constant for every layer",
}
"""What the scales of each mode are."""


class CalibrateOptions(Strict):
    """How input scales are found."""

    mode: Mode = Field("measured", description="where the scales come from")
    percentile: float = Field(
        99.9, gt=0, le=100, description="of |x| over a layer's inputs; 100: the true maximum"
    )
    samples: int = Field(64, ge=1, le=65536, description="tokens of the random and lora modes")
    seed: int = Field(0, ge=0, lt=2**31, description="of the random and lora modes")
    device: str = Field("auto", description="where the random and lora modes compute")
    loras: tuple[Path, ...] = Field((), description="LoRA files of the lora mode")
    scales: Path | dict[str, float] | None = Field(
        None, description="import: JSON or safetensors file, or scales by layer"
    )
    constant: float = Field(1.0, description="scale of the constant mode")
    layers: str | None = Field(None, description="only layers in whose name this regex is found")

    @field_validator("layers")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else check_pattern(pattern)

    @field_validator("constant")
    @classmethod
    def _check_constant(cls, value: float) -> float:
        if not SMALLEST <= value <= LARGEST:  # NaN neither
            raise ValueError(f"an input scale is a number from {SMALLEST:g} to {LARGEST:g}")
        return value

    @model_validator(mode="after")
    def _check_files(self) -> CalibrateOptions:
        if (self.mode == "lora") != bool(self.loras):
            raise ValueError("mode lora and LoRA files go together: give both or neither")
        if (self.mode == "import") != (self.scales is not None):
            raise ValueError("mode import and a file of scales go together: give both or neither")
        return self

    def provenance(self) -> dict[str, Any]:
        """What the output's metadata say of the scales of this mode."""
        said: dict[str, Any] = {"mode": self.mode, "meaning": MEANING[self.mode]}
        if self.mode in ("measured", "random", "lora"):
            said["percentile"] = self.percentile
        if self.mode in ("random", "lora"):
            said.update(samples=self.samples, seed=self.seed)
        if self.mode == "constant":
            said["constant"] = self.constant
        return said


@dataclass(frozen=True)
class ScaledLayer:
    """The input scale of one layer.

    Attributes:
        name: the layer.
        scale: the new scale; None where the layer has none and gets none.
        before: the scale it had.
        reach: the magnitude at the percentile, which the grid's maximum stands for.
        largest: the largest magnitude of the inputs.
        reason: why the layer was left as it was, or "".
    """

    name: str
    scale: float | None
    before: float | None
    reach: float | None = None
    largest: float | None = None
    reason: str = ""

    @property
    def changed(self) -> bool:
        """Whether the new file says something else than the old one."""
        return not self.reason and self.scale != self.before


@dataclass(frozen=True)
class CalibrateReport:
    """What ``calibrate`` did: the layers, where their scales come from, and warnings."""

    path: str
    mode: Mode
    meaning: str
    layers: tuple[ScaledLayer, ...]
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> int:
        """How many layers' scales changed."""
        return sum(layer.changed for layer in self.layers)

    def summary(self) -> str:
        """One line for a person."""
        kept = sum(bool(layer.reason) for layer in self.layers)
        return (
            f"{self.changed} of {len(self.layers)} input scales changed ({self.meaning}); "
            f"{kept} left as they were"
        )

    def table(self) -> str:
        """All layers, one a line, then the warnings and the summary."""
        rows = [("layer", "scale", "before", "percentile", "maximum", "why not")]
        for x in self.layers:
            numbers = (_number(v) for v in (x.scale, x.before, x.reach, x.largest))
            rows.append((x.name, *numbers, x.reason))  # type: ignore[arg-type]
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join([*lines, self.summary()])

    def json(self) -> str:
        """The report for machines."""
        return json.dumps({**asdict(self), "changed": self.changed}, ensure_ascii=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
