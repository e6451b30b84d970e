"""A budget's trade-off drawn: size against quality."""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from .budget import Budget

_WIDTH, _HEIGHT, _DPI = 7.0, 4.4, 110


def points(budget: Budget, most: int = 48) -> dict[str, Any]:
    """The trade-off as plain data: at most ``most`` points of the curve, its ends among them."""
    curve = [point for point in budget.curve if math.isfinite(point[1])]
    last = len(curve) - 1
    some = sorted({round(i * last / (most - 1)) for i in range(most)}) if last >= most else None
    return {
        "curve": [curve[i] for i in some] if some else curve,
        "uniform": [
            (name, size, level)
            for name, (size, level) in budget.uniform.items()
            if math.isfinite(level)
        ],
        "size": budget.size,
        "snr": budget.snr if math.isfinite(budget.snr) else None,
        "measured": budget.measured,
    }


def draw(budget: Budget) -> Image.Image:
    """Draw what each size allows, the choice made, and each format alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    if budget.curve:
        sizes, levels = zip(*budget.curve, strict=True)
        axes.plot([size / 1e6 for size in sizes], levels, color="#1f5fa8", label="best choice")
    for name, (size, level) in budget.uniform.items():
        axes.plot(size / 1e6, level, "o", color="#7d7f87", ms=4)
        axes.annotate(name, (size / 1e6, level), fontsize=6, xytext=(4, -8),
                      textcoords="offset points")  # fmt: skip
    axes.plot(budget.size / 1e6, budget.snr, "*", color="#e0a458", ms=14, label="chosen")
    axes.set_xlabel("MB", fontsize=8)
    axes.set_ylabel(f"dB\n({budget.measured})", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="lower right")
    figure.suptitle(f"{budget.size:,} bytes, {budget.snr:.1f} dB", fontsize=9)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
