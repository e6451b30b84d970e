"""A comparison drawn: SNR by step, and the worst layers with both their scores."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from PIL import Image

from .comparison import Comparison, LayerScore

WORST = 16
"""Layers drawn."""

_WIDTH, _DPI = 9.0, 110
_EXACT, _EXECUTED, _WEIGHT = "#8fb3e0", "#1f5fa8", "#b9bec7"
_SCORES = (
    ("weight", "weights", _WEIGHT),
    ("exact", "outputs, exact activations", _EXACT),
    ("executed", "outputs, as executed", _EXECUTED),
)


def draw(comparison: Comparison, worst: int = WORST) -> Image.Image:
    """Draw a comparison: a curve over its steps where it has some, and bars of the worst layers.

    Args:
        comparison: what to draw.
        worst: how many layers to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = comparison.worst(worst)
    with_steps = len(comparison.steps) > 1
    heights = [2.6] * with_steps + [max(1.6, 0.9 + 0.3 * len(layers))]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.4), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if with_steps:
        _draw_steps(axes[0], comparison)
    _draw_layers(axes[-1], layers, comparison.device)
    figure.suptitle(textwrap.fill(comparison.summary().splitlines()[0], 120), fontsize=9)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def _draw_steps(axes: Any, comparison: Comparison) -> None:
    steps = comparison.steps
    numbers = [step.number for step in steps]
    sampled = any(step.denoised is not None for step in steps)
    label = "latent after the step" if sampled else "output of the call"
    axes.plot(numbers, _points([s.latent for s in steps]), "o-", color=_EXECUTED, label=label)
    if sampled:
        denoised = _points([step.denoised for step in steps])
        axes.plot(numbers, denoised, "o--", color=_EXACT, label="predicted picture")
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("step" if sampled else "call", fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(axes, "SNR, dB")


def _draw_layers(axes: Any, layers: Sequence[LayerScore], device: str) -> None:
    if not layers:
        axes.text(0.5, 0.5, "no layer lost anything", ha="center", va="center")
        axes.set_axis_off()
        return
    measured = any(x.exact is not None for x in layers)
    shown = [score for score in _SCORES if (score[0] != "weight") == measured]
    height = 0.8 / len(shown)
    for index, (field, label, color) in enumerate(shown):
        values = [getattr(layer, field) for layer in layers]
        places = [row + (index - (len(shown) - 1) / 2) * height for row in range(len(layers))]
        name = f"{label} on {device}" if field == "executed" else label
        axes.barh(places, [_bar(v) for v in values], height, color=color, label=name)
        for place, value in zip(places, values, strict=True):
            axes.text(_bar(value), place, f" {_text(value)}", va="center", fontsize=7)
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.set_xlabel("SNR of the worst layers, dB", fontsize=8)
    _finish(axes, "")


def _finish(axes: Any, label: str) -> None:
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(axis="both" if label else "x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _points(values: Sequence[float | None]) -> list[float]:
    """A gap where nothing was lost or all was."""
    return [v if v is not None and math.isfinite(v) else math.nan for v in values]


def _bar(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0


def _text(value: float | None) -> str:
    if value is None:
        return "not measured"
    if math.isfinite(value):
        return f"{value:.1f}"
    return "same" if value > 0 else "broken"
