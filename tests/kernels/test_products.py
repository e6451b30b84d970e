"""Products of block-scaled matrices against float64."""

import pytest
import torch

from roundsmith.kernels import blockwise_absmax, dequantize, hardware_product, scaled_linear

from ..contract import snr


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("t", [1, 5, 33])
@pytest.mark.parametrize(("n", "k", "group", "rows"), [
    (48, 64, 64, 1), (48, 128, 32, 1), (64, 128, 64, 64), (7, 30, 10, 7), (1, 16, 16, 1),
])  # fmt: skip
def test_scaled_linear(dtype: torch.dtype, t: int, n: int, k: int, group: int, rows: int) -> None:
    x = (torch.randn(t, k) * 40).to(dtype)
    w = (torch.randn(n, k) * 40).to(dtype)
    x_scale, w_scale = torch.rand(t, k // group), torch.rand(n // rows, k // group)
    bias = torch.randn(n)
    exact = dequantize(x, x_scale).double() @ dequantize(w, w_scale).double().t()
    found = scaled_linear(x, x_scale, w, w_scale)
    assert found.shape == (t, n)
    assert snr(exact, found) > 115
    assert snr(exact + bias, scaled_linear(x, x_scale, w, w_scale, bias)) > 115
    half = scaled_linear(x, x_scale, w, w_scale, bias, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert snr(exact + bias, half) > 45


def test_int8_products_run_on_a_cpu() -> None:
    assert hardware_product(torch.int8, torch.device("cpu"))
    assert not hardware_product(torch.float8_e4m3fn, torch.device("cpu"))
    assert not hardware_product(torch.uint8, torch.device("cpu"))


@pytest.mark.parametrize(("rows", "cols"), [(1, 64), (1, 16), (32, 64), (8, 16), (32, 16), (8, 64)])
def test_blockwise_absmax(rows: int, cols: int) -> None:
    x = torch.randn(32, 64)
    x[3, 5] = -77
    expected = x.abs().view(32 // rows, rows, 64 // cols, cols).permute(0, 2, 1, 3).amax(dim=(2, 3))
    assert torch.equal(blockwise_absmax(x, rows, cols), expected)
    x[3, 5] = torch.nan
    assert blockwise_absmax(x, rows, cols)[3 // rows, 5 // cols].isnan()
