"""The product as the device runs it."""

import math

import pytest
import torch

from roundsmith.layouts import executed_linear, get_format
from roundsmith.layouts.codec import encode


def quantized(name: str, w: torch.Tensor, **options):
    """The weight as a tensor that runs, and its decoded values."""
    fmt = get_format(name)
    shape = (w.shape[0], w.shape[1])
    spec = fmt.fit(fmt.bind(features=shape[1], **options), shape).spec
    values = fmt.transform(w.clone(), spec)
    absmax = values.abs().amax()
    scales = fmt.geometry(spec).scales(values, fmt.grid, absmax)
    codes = encode(values, fmt.grid, scales)
    parts = {"weight": fmt.pack_codes(codes, spec)}
    parts.update(fmt.pack_scales(scales, spec, fmt.padded_shape(shape)))
    conf = fmt.conf(spec, shape)
    return fmt, fmt.read(parts, conf, shape, torch.float32), fmt.decode(parts, conf, shape)


def snr(expected: torch.Tensor, got: torch.Tensor) -> float:
    noise = (expected - got).double().square().sum().item()
    return 10 * math.log10(expected.double().square().sum().item() / noise) if noise else math.inf


@pytest.fixture
def w() -> torch.Tensor:
    return torch.randn(64, 256, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(20, 256, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8"])
def test_without_the_hardware_weights_are_decoded(name: str, w, x) -> None:
    fmt, weight, decoded = quantized(name, w)
    assert snr(x @ decoded.T, executed_linear(fmt, weight, x)) > 100


@pytest.mark.parametrize("options", [{}, {"convrot": 64}], ids=str)
def test_int8_rounds_activations_on_every_device(options, w, x) -> None:
    fmt, weight, decoded = quantized("int8_tensorwise", w, **options)
    assert 35 < snr(x @ decoded.T, executed_linear(fmt, weight, x)) < 50
    exact = executed_linear(fmt, weight, x, full_precision=True)
    assert snr(x @ decoded.T, exact) > 90
