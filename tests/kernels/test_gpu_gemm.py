"""Triton's products of block-scaled matrices against float64 and the eager reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roundsmith.kernels import blocks, products
from roundsmith.kernels.tiles import Tile

from .cases import CODES, FLOATS, ROUNDING, codes, floats, positive, relative_error, same_bits

TILE = Tile(32, 32, 32)
SHAPES = [
    (1, 17, 65, 65, 1),  # rows of x, of w, columns, columns and weight rows that share a scale
    (33, 65, 130, 130, 1),
    (130, 257, 96, 96, 257),
    (5, 48, 128, 32, 1),
    (33, 64, 192, 64, 64),
    (70, 96, 128, 64, 32),
    (2, 30, 96, 32, 15),
]


def operands(dtype, t: int, n: int, k: int, group: int, rows: int) -> Any:
    return (
        codes(t, k, dtype), positive(t, k // group), codes(n, k, dtype),
        positive(n // rows, k // group),
    )  # fmt: skip


def moved(device, *tensors) -> Any:
    return [tensor if tensor is None else tensor.to(device) for tensor in tensors]


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("t", "n", "k", "group", "rows"), SHAPES)
def test_products(device, dtype, biased: bool, t: int, n: int, k: int, group: int, rows: int):
    from roundsmith.kernels.gpu import gemm

    given = operands(dtype, t, n, k, group, rows)
    bias = floats(1, n)[0] if biased else None
    exact = blocks.dequantize(*given[:2]).double() @ blocks.dequantize(*given[2:]).double().t()
    exact = exact if bias is None else exact + bias
    found = gemm.scaled_linear(*moved(device, *given, bias), torch.float32, tile=TILE)
    assert relative_error(exact, found) < ROUNDING[torch.float32]
    eager = products.scaled_linear(*given, bias, torch.float32)
    assert relative_error(eager, found) < ROUNDING[torch.float32]


@pytest.mark.parametrize("floating", FLOATS)
def test_results_in_other_dtypes(device, floating) -> None:
    from roundsmith.kernels.gpu import gemm

    given, bias = operands(torch.int8, 33, 65, 130, 130, 1), floats(1, 65, floating)[0]
    given = (given[0], given[1] / 1000, *given[2:])  # float16 ends at 65504
    expected = products.scaled_linear(*given, bias.float(), torch.float32)
    found = gemm.scaled_linear(*moved(device, *given, bias), floating, tile=TILE)
    assert found.dtype == floating
    assert relative_error(expected, found) < ROUNDING[floating]


@pytest.mark.parametrize(("t", "n", "k"), [(1, 17, 33), (33, 65, 1025), (130, 257, 64)])
@pytest.mark.parametrize("tile", [TILE, Tile(16, 64, 64), Tile(64, 16, 128, band=2)], ids=str)
def test_integer_sums_are_exact(device, t: int, n: int, k: int, tile: Tile) -> None:
    """Under scales of one: what float32 holds exactly comes out exactly, whatever the tile."""
    from roundsmith.kernels.gpu import gemm

    x, w = codes(t, k, torch.int8) // 4, codes(n, k, torch.int8) // 4
    ones = torch.ones(t, 1), torch.ones(n, 1)
    found = gemm.scaled_linear(
        *moved(device, x, ones[0], w, ones[1], None), torch.float32, tile=tile
    )
    assert torch.equal(found.cpu().to(torch.int64), x.long() @ w.long().t())


def test_largest_integer_sum(device) -> None:
    """±127 · ±127 over 13824 columns, far beyond 2²⁴, in INT32 before it is rounded."""
    from roundsmith.kernels.gpu import gemm

    x = torch.full((1, 13824), 127, dtype=torch.int8)
    w = torch.stack([x[0], -x[0]]).repeat(8, 1)
    ones = torch.ones(1, 1), torch.ones(16, 1)
    found = gemm.scaled_linear(
        *moved(device, x, ones[0], w, ones[1], None), torch.float32, tile=Tile(16, 16, 128)
    )
    expected = torch.tensor(127 * 127 * 13824, dtype=torch.float32)
    assert torch.equal(found.cpu()[0, :2], torch.stack([expected, -expected]))


def test_zero_rows_and_blocks(device) -> None:
    from roundsmith.kernels.gpu import gemm

    x, x_scale, w, w_scale = operands(torch.int8, 33, 64, 128, 64, 64)
    x[:5], w[:, 64:] = 0, 0
    x_scale[:5] = 1e-30
    found = gemm.scaled_linear(
        *moved(device, x, x_scale, w, w_scale, None), torch.float32, tile=TILE
    )
    assert not found[:5].any()
    assert relative_error(products.scaled_linear(x, x_scale, w, w_scale), found) < 2e-6


def test_operands_that_are_not_contiguous(device) -> None:
    from roundsmith.kernels.gpu import gemm

    x, x_scale, w, w_scale = moved(device, *operands(torch.int8, 64, 48, 96, 96, 1))
    views = x[::2, 32:], x_scale[::2], w[:, 32:], w_scale  # strided rows
    columns = x.t()[:48, :].contiguous().t(), x_scale, w[:, :48], w_scale  # strided columns
    for given in (views, columns):
        expected = products.scaled_linear(*(tensor.cpu() for tensor in given))
        found = gemm.scaled_linear(*given, None, torch.float32, tile=TILE)
        assert relative_error(expected, found) < 2e-6


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("gelu", [None, "tanh", "none"])
@pytest.mark.parametrize(("t", "n", "k", "group", "rows"), SHAPES[:5])
def test_requantized(device, dtype, gelu, t: int, n: int, k: int, group: int, rows: int) -> None:
    """The result is the product quantized by row and 32 columns; the last group may be short."""
    from roundsmith.kernels.gpu import gemm

    given, bias = operands(dtype, t, n, k, group, rows), floats(1, n)[0]
    given = (given[0], given[1] / 1e3, *given[2:])
    expected = products.scaled_linear_quantized(*given, bias, 32, gelu)
    found = gemm.scaled_linear_quantized(*moved(device, *given, bias), 32, gelu, tile=TILE)
    assert found[0].shape == (t, n)
    assert found[1].shape == (t, -(-n // 32))
    near = 2e-6 * float(expected[1].max())  # a short group's sums may cancel
    torch.testing.assert_close(found[1].cpu(), expected[1], rtol=2e-5, atol=near)
    pad = (0, -n % 32)
    decoded = [
        blocks.dequantize(torch.nn.functional.pad(c.cpu().float(), pad), s.cpu())
        for c, s in (expected, found)
    ]
    assert relative_error(*decoded) < (0.004 if dtype == torch.int8 else 0.03)
    assert (expected[0].float() != found[0].cpu().float()).float().mean() < 0.02


def test_no_rows_give_no_rows(device) -> None:
    from roundsmith.kernels.gpu import gemm

    x, x_scale, *w = operands(torch.int8, 1, 17, 64, 64, 1)
    given = x[:0], x_scale[:0], *w
    found = gemm.scaled_linear(*moved(device, *given, None), torch.float32, tile=TILE)
    assert found.shape == (0, 17)
    assert same_bits(products.scaled_linear(*given), torch.empty(0, 17))
