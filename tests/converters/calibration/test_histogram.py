"""Percentiles of magnitudes, against numpy's over the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roundsmith.converters.calibration.histogram import (
    BINS,
    histogram,
    magnitude_bits,
    magnitudes,
    percentile,
)


def counts_of(x):
    return histogram(magnitude_bits(x))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 3e4, 1e30])
@pytest.mark.parametrize("p", [0, 10, 50, 99, 99.9])
def test_a_percentile_is_within_one_bin_of_the_true_one(scale, p):
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0)) * scale
    found = percentile(counts_of(x), p, float(x.abs().max()))
    true = np.percentile(x.abs().double().numpy(), p)
    assert found == pytest.approx(true, rel=1 / 16)


def test_within_a_bin_values_are_taken_to_be_spread_evenly():
    x = torch.linspace(1, 1.0624, 1000)  # all in the bin from 1 to 17/16
    for p in (10, 50, 90):
        assert percentile(counts_of(x), p, 1.07) == pytest.approx(1 + 0.0625 * p / 100, abs=1e-3)


def test_the_hundredth_percentile_is_the_true_maximum():
    x = torch.tensor([0.1, 0.2, 7.3])
    assert percentile(counts_of(x), 100, 7.3) == 7.3
    assert percentile(counts_of(x), 99.99, 7.3) <= 7.3


def test_zeros_count():
    x = torch.cat((torch.zeros(90), torch.ones(10)))
    assert percentile(counts_of(x), 80, 1.0) == pytest.approx(0, abs=1e-38)
    assert percentile(counts_of(x), 95, 1.0) == pytest.approx(1, rel=1 / 16)


def test_nothing_counted_is_zero_and_percentiles_have_limits():
    assert percentile(torch.zeros(BINS, dtype=torch.int64), 50, 0.0) == 0
    with pytest.raises(ValueError, match="101"):
        percentile(torch.zeros(BINS, dtype=torch.int64), 101, 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
def test_every_dtype_falls_into_the_bins_of_its_values(dtype):
    x = (torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    assert torch.equal(counts_of(x), counts_of(x.float()))
    bits = magnitude_bits(x)
    assert torch.equal(magnitudes(bits), x.float().abs())
