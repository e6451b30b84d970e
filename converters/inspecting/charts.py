"""An inspection drawn: bytes and SNR of the model's blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from .inspection import Inspection, LayerInfo

_WIDTH, _HEIGHT, _DPI = 10.0, 5.6, 110
_LABELS = 40  # blocks with a name below them; of more, some
_COLORS = ("#1f5fa8", "#8fb3e0", "#e0a458", "#6f9e6e", "#a05c7b", "#7d7f87", "#c9c3a5", "#4b8f8c")
_BLOCK = re.compile(r"^((?:[^.]*[^.\d][^.]*\.)*\d+)(?:\.|$)")


class Block(NamedTuple):
    """Layers that belong together.

    Attributes:
        name: what their names begin with.
        bytes: by how they are stored.
        snr: dB over all their weights that were quantized; None where none was.
        worst: dB of the worst layer.
    """

    name: str
    bytes: dict[str, int]
    snr: float | None
    worst: float | None


def blocks_of(layers: Sequence[LayerInfo]) -> list[Block]:
    """The blocks of a model in the order of their names' numbers; layers outside come last."""
    groups: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        match = _BLOCK.match(layer.name)
        groups.setdefault(match[1] if match else "other", []).append(layer)
    return [_block(name, groups[name]) for name in sorted(groups, key=_order)]


def _order(name: str) -> tuple[bool, str, int]:
    stem, _, number = name.rpartition(".")
    return name == "other", stem, int(number) if number.isdecimal() else -1


def _block(name: str, layers: list[LayerInfo]) -> Block:
    sizes: dict[str, int] = {}
    noise = weights = 0.0
    scores = []
    for layer in layers:
        sizes[layer.stored_as] = sizes.get(layer.stored_as, 0) + layer.bytes
        if layer.snr is not None and not math.isnan(layer.snr):
            count = math.prod(layer.shape)
            noise += count * 10 ** (-layer.snr / 10)
            weights += count
            scores.append(layer.snr)
    finite = bool(weights and noise)
    snr = 10 * math.log10(weights / noise) if finite else None
    return Block(name, sizes, snr, min(scores) if finite else None)


def draw(inspection: Inspection) -> Image.Image:
    """Draw an inspection: a bar of bytes a block, and its SNR below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = blocks_of(inspection.layers)
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    places = range(len(blocks))
    base = [0.0] * len(blocks)
    kinds = [x for x in inspection.formats if any(x in block.bytes for block in blocks)]
    for index, kind in enumerate(kinds):
        heights = [block.bytes.get(kind, 0) / 1e6 for block in blocks]
        color = _COLORS[index % len(_COLORS)]
        above.bar(places, heights, bottom=base, color=color, label=kind, width=0.8)
        base = [a + b for a, b in zip(base, heights, strict=True)]
    _draw_snr(below, blocks)
    above.set_ylabel("MB", fontsize=8)
    if kinds:
        above.legend(frameon=False, fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
    against = f"against {Path(inspection.reference).name}" if inspection.reference else "estimated"
    below.set_ylabel(f"weight SNR, dB\n({against})", fontsize=8)
    step = -(-len(blocks) // _LABELS) or 1
    names = [block.name.removeprefix("model.diffusion_model.") for block in blocks[::step]]
    below.set_xticks(list(places)[::step], names, rotation=90, fontsize=6)
    for axes in (above, below):
        axes.tick_params(axis="y", labelsize=7)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(inspection.summary().splitlines()[0], fontsize=9)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def _draw_snr(axes: Any, blocks: Sequence[Block]) -> None:
    found = [(place, b) for place, b in enumerate(blocks) if b.snr is not None]
    if not found:
        axes.text(0.5, 0.5, "nothing is quantized, or nothing was lost", ha="center", va="center",
                  transform=axes.transAxes)  # fmt: skip
        return
    places = [place for place, _ in found]
    axes.plot(places, [b.snr for _, b in found], "o", color=_COLORS[0], label="block", ms=4)
    axes.plot(places, [b.worst for _, b in found], "_", color=_COLORS[2], label="worst layer")
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
