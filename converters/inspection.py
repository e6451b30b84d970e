"""What a checkpoint holds: its layers, their formats and sizes, and which loaders read it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint
from .model import ModelView
from .presets import detect
from .recipe import METADATA_KEY
from .report import human_bytes


@dataclass(frozen=True)
class LayerInfo:
    """A weight of a file: its logical shape, how it is stored, its bytes with scales."""

    name: str
    shape: tuple[int, ...]
    stored_as: str
    bytes: int
    conf: dict[str, Any] | None


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
    """

    path: str
    model: str
    layers: tuple[LayerInfo, ...]
    formats: dict[str, int]
    stock: bool
    bytes: int
    recipe: str | None
    notes: tuple[str, ...]

    def table(self) -> str:
        """As text: layers, then the totals."""
        rows = [(x.name, "×".join(map(str, x.shape)), x.stored_as, human_bytes(x.bytes))
                for x in self.layers]  # fmt: skip
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """The totals, a line each."""
        mix = ", ".join(f"{name} {human_bytes(size)}" for name, size in self.formats.items())
        loader = "stock ComfyUI or Roundsmith" if self.stock else "Roundsmith's loader nodes"
        lines = [f"{self.path}: {human_bytes(self.bytes)}", f"model: {self.model}",
                 f"stored as: {mix}", f"loads with: {loader}"]  # fmt: skip
        if self.recipe is not None:
            lines.append(f"made with: {self.recipe}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def json(self) -> str:
        """For machines."""
        return json.dumps(asdict(self), ensure_ascii=False)


def inspect_file(path: str | Path) -> Inspection:
    """Read a checkpoint's header and say what it holds; weights are not read."""
    with Checkpoint.open(path) as source:
        model = ModelView(source)
        layers, sizes, stock = [], Counter[str](), True
        for name in model.names:
            stored = model.stored_layer(name)
            size = model.nbytes(name)
            kind = stored.format.id if stored else source.tensors[name].dtype_name
            sizes[kind] += size
            stock = stock and (stored is None or stored.format.stock)
            if name.endswith(".weight") and len(model.shape(name)) >= 2:
                conf = stored.conf if stored else None
                layers.append(
                    LayerInfo(name.removesuffix(".weight"), model.shape(name), kind, size, conf)
                )
        found = detect(model.names)
        return Inspection(
            str(path),
            found.evidence or "unknown",
            tuple(layers),
            dict(sizes.most_common()),
            stock,
            sum(sizes.values()),
            source.metadata.get(METADATA_KEY),
            tuple(model.notes),
        )
