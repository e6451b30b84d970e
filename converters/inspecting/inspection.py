"""An inspection: as an object, a table and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..progress import human_bytes
from .codes import CodeStats
from .scales import ScaleStats


@dataclass(frozen=True)
class LayerInfo:
    """A weight of a file.

    Attributes:
        name: the layer.
        shape: its logical shape.
        stored_as: the format, or the dtype of what is not quantized.
        bytes: with scales.
        conf: its JSON; None where it is not quantized.
        scales: of its weights.
        input_scale: of its inputs, where it has one number for them.
        codes: of a sample of its codes, or of all.
        snr: dB of its weights, estimated from the codes, or against the original.
    """

    name: str
    shape: tuple[int, ...]
    stored_as: str
    bytes: int
    conf: dict[str, Any] | None = None
    scales: ScaleStats | None = None
    input_scale: float | None = None
    codes: CodeStats | None = None
    snr: float | None = None


@dataclass(frozen=True)
class Suspicion:
    """Something that is probably wrong: its kind, the layer or tensor, and what it is."""

    kind: str
    entry: str
    text: str


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds.

    Attributes:
        path: the file.
        model: what it was recognised as, and by which keys.
        layers: its weights.
        formats: bytes by how they are stored.
        stock: stock ComfyUI loads it.
        bytes: of all tensors.
        recipe: the recipe it was made with, where Roundsmith made it.
        notes: what is odd about it.
        why_not_stock: why stock ComfyUI does not load it, or not rightly.
        why_not_roundsmith: why Roundsmith's loaders do not.
        suspicious: what is probably wrong.
        made: the recipe and what was done to the file since, by name.
        reference: the original that ``snr`` of the layers is against; "" where it is estimated.
        deep: all codes were read, not a sample.
    """

    path: str
    model: str
    layers: tuple[LayerInfo, ...]
    formats: dict[str, int]
    stock: bool
    bytes: int
    recipe: str | None
    notes: tuple[str, ...]
    why_not_stock: tuple[str, ...] = ()
    why_not_roundsmith: tuple[str, ...] = ()
    suspicious: tuple[Suspicion, ...] = ()
    made: dict[str, str] = field(default_factory=dict)
    reference: str = ""
    deep: bool = False

    def table(self) -> str:
        """As text: layers, then the totals."""
        snr = "SNR, dB" if self.reference else "est. SNR, dB"
        titles = ("layer", "shape", "stored as", "bytes", "weight scales", "at max", snr)
        shown = 4 if all(layer.conf is None for layer in self.layers) else len(titles)
        rows = [row[:shown] for row in (titles, *map(_row, self.layers))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """The totals, a line each."""
        mix = ", ".join(f"{name} {human_bytes(size)}" for name, size in self.formats.items())
        loaders = ["stock ComfyUI"] * self.stock
        loaders += ["Roundsmith's loader nodes"] * (not self.why_not_roundsmith)
        if self.stock and not self.why_not_roundsmith:
            loaders = ["stock ComfyUI or Roundsmith"]
        lines = [f"{self.path}: {human_bytes(self.bytes)}", f"model: {self.model}",
                 f"stored as: {mix}", f"loads with: {', '.join(loaders) or 'nothing'}"]  # fmt: skip
        lines += [f"not with stock ComfyUI: {why}" for why in self.why_not_stock]
        lines += [f"not with Roundsmith: {why}" for why in self.why_not_roundsmith]
        lines += [f"{what}: {text}" for what, text in self.made.items()]
        lines += [f"suspicious: {x.entry}: {x.text}" for x in self.suspicious]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def json(self) -> str:
        """For machines."""
        return json.dumps(_finite(asdict(self)), ensure_ascii=False)


def _row(layer: LayerInfo) -> tuple[str, ...]:
    scales = at_max = snr = ""
    if layer.scales is not None:
        low, high = layer.scales.least, layer.scales.largest
        scales = f"{low:.3g}" if low == high else f"{low:.3g} … {high:.3g}"
    if layer.codes is not None:
        at_max = f"{layer.codes.at_max:.2%}"
    if layer.snr is not None:
        snr = f"{layer.snr:.1f}"
    shape = "×".join(map(str, layer.shape))
    return layer.name, shape, layer.stored_as, human_bytes(layer.bytes), scales, at_max, snr


def _finite(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
