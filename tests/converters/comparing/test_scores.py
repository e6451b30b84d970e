"""Scores of errors whose power is known."""

from __future__ import annotations

import math

import pytest
import torch

from roundsmith.converters.comparing.scores import Power, decibels, mean, signal_to_noise
from roundsmith.errors import RoundsmithError


@pytest.mark.parametrize("snr", [-10.0, 0.0, 20.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_of_a_known_power(snr, dtype):
    generator = torch.Generator().manual_seed(1)
    signal = torch.randn(300, 1000, generator=generator, dtype=torch.float64)
    noise = torch.randn(300, 1000, generator=generator, dtype=torch.float64)
    noise *= (signal.norm() / noise.norm()) * 10 ** (-snr / 20)
    got = signal_to_noise(signal.to(dtype), (signal + noise).to(dtype))
    assert got == pytest.approx(snr, abs=1e-3)


def test_pieces_add_up_to_the_whole(monkeypatch):
    monkeypatch.setattr("roundsmith.converters.comparing.scores._AT_ONCE", 7)
    x, y = torch.randn(5, 20).double(), torch.randn(5, 20).double()
    power = Power()
    power.add(x[:2], y[:2])
    power.add(x[2:], y[2:])
    expected = 10 * math.log10(float(x.square().sum() / (x - y).square().sum()))
    assert power.snr == pytest.approx(expected, abs=1e-9)
    assert (power.low, power.high, power.count) == (float(x.min()), float(x.max()), 100)


def test_psnr_against_its_definition():
    x, y = torch.rand(3, 8, 8), torch.rand(3, 8, 8)
    power = Power()
    power.add(x, y)
    error = float((x - y).square().mean())
    assert power.psnr(1.0) == pytest.approx(-10 * math.log10(error), abs=1e-4)
    spread = float(x.max() - x.min())
    expected = 20 * math.log10(spread) - 10 * math.log10(error)
    assert power.psnr() == pytest.approx(expected, abs=1e-4)


def test_equal_and_broken():
    x = torch.randn(4, 4)
    assert signal_to_noise(x, x.clone()) == math.inf
    broken = x.clone()
    broken[1, 2] = math.nan
    assert signal_to_noise(x, broken) == -math.inf
    broken[1, 2] = math.inf
    assert signal_to_noise(x, broken) == -math.inf
    assert signal_to_noise(torch.zeros(3), torch.ones(3)) == -math.inf
    assert signal_to_noise(torch.zeros(3), torch.zeros(3)) == math.inf
    assert decibels(1e-300, 1e300) == pytest.approx(-6000)


def test_shapes_that_differ_are_an_error():
    with pytest.raises(RoundsmithError, match=r"\[2, 3\].*\[3, 2\]"):
        Power().add(torch.zeros(2, 3), torch.zeros(3, 2))


def test_a_mean_leaves_out_what_lost_nothing_but_not_what_is_broken():
    assert mean([10.0, None, math.inf, 30.0]) == 20.0
    assert mean([math.inf, None]) == math.inf
    assert mean([None]) is None
    assert mean([50.0, -math.inf]) == -math.inf
    assert mean([50.0, math.nan]) == mean([math.nan]) == -math.inf
