"""Charts and pictures: what is in them, and that nothing global is touched."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from roundsmith.converters.comparing import Comparison, LayerScore, StepScore, charts, pictures


def layer(name, executed, exact=None):
    return LayerScore(name, (4, 4), "nvfp4", 20.0, exact, executed, 8)


@pytest.fixture
def comparison():
    layers = (
        layer("broken", -math.inf, -math.inf),
        layer("worst", 10.0, 20.0),
        layer("better", 30.0, 40.0),
        layer("same", math.inf, math.inf),
    )
    steps = tuple(StepScore(i + 1, 40.0 - i if i else math.inf, 30.0) for i in range(5))
    return Comparison(36.0, "final latent", layers, steps)


@pytest.fixture
def axes(monkeypatch):
    """The axes that are drawn, by what is on their x axis."""
    drawn = {}
    finish = charts._finish

    def watched(ax, label):
        drawn[ax.get_xlabel().split()[0]] = ax
        finish(ax, label)

    monkeypatch.setattr(charts, "_finish", watched)
    return drawn


def test_bars_are_the_scores_of_the_layers_that_lost_something(comparison, axes):
    image = charts.draw(comparison)
    assert image.mode == "RGB" and image.width > 600 and len(image.getcolors(2**20)) > 20
    exact, executed = axes["SNR"].containers
    assert [bar.get_width() for bar in exact] == [0, 20, 40]
    assert [bar.get_width() for bar in executed] == [0, 10, 30]
    names = [label.get_text() for label in axes["SNR"].get_yticklabels()]
    assert names == ["broken", "worst", "better"]


def test_the_curve_has_a_gap_where_nothing_was_lost(comparison, axes):
    charts.draw(comparison, worst=1)
    latent, denoised = (line.get_ydata() for line in axes["step"].get_lines())
    assert math.isnan(latent[0]) and list(latent[1:]) == [39, 38, 37, 36]
    assert list(denoised) == [30] * 5
    assert len(axes["SNR"].containers[0]) == 1


def test_weights_are_drawn_where_there_is_nothing_else(axes):
    weights = (LayerScore("a", (4, 4), "nvfp4", 20.0),)
    charts.draw(Comparison(20.0, "weights", weights))
    assert [bar.get_width() for c in axes["SNR"].containers for bar in c] == [20]


def test_a_comparison_without_losses_can_be_drawn():
    assert charts.draw(Comparison(math.inf, "output", (layer("same", math.inf),))).width > 600


def test_matplotlib_is_imported_when_drawing_and_pyplot_never():
    code = (
        "import sys, roundsmith.converters.comparing as c\n"
        "from roundsmith.converters.comparing import charts\n"
        "assert 'matplotlib' not in sys.modules\n"
        "charts.draw(c.Comparison(1.0, 'x', ()))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("error", "gain"), [(0.0, 64), (0.001, 64), (0.05, 16), (0.9, 1)])
def test_the_difference_is_amplified_into_range(error, gain):
    a = torch.full((1, 256, 300, 3), 0.05)
    b = a.clone()
    b[:, 10:20, 10:20] += error
    out = pictures.side_by_side(a, b)
    assert out.dtype == torch.float32 and out.shape == (1, 256 + 28, 3 * 300 + 8, 3)
    mine, its, difference = (out[0, 28:, i * 304 : i * 304 + 300] for i in range(3))
    assert torch.allclose(mine, a[0], atol=0.003) and torch.allclose(its, b[0], atol=0.003)
    assert float(difference[15, 15, 0]) == pytest.approx(min(error * gain, 1), abs=0.003)
    assert float(difference[100, 100, 0]) == 0
    assert out[0, :28].std() > 0, "a line of text"


def test_small_pictures_are_enlarged_and_nan_shows():
    a = torch.rand(2, 8, 16, 3)
    b = a.clone()
    b[1, 0, 0] = math.nan
    out = pictures.side_by_side(a, b, gain=1)
    assert out.shape == (2, 256 + 28, 3 * 512 + 8, 3) and bool(out.isfinite().all())
    assert out[1, 30, 2 * 516, 0] == 1, "what is broken differs as much as can be"
    assert out[0, 28:, 2 * 516 :].max() == 0
