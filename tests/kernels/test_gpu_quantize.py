"""Triton's quantizing and decoding against the eager reference, to the last bit."""

from __future__ import annotations

import pytest
import torch

from roundsmith.kernels import activations, blocks

from .cases import CODES, FLOATS, codes, floats, positive, relative_error, same_bits

SHAPES = [
    (1, 17, 17),  # rows, columns, columns that share a scale
    (33, 65, 13),
    (130, 257, 257),
    (5, 256, 32),
    (7, 384, 128),
    (2, 20000, 20000),  # longer than a program keeps in registers
]


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("floating", FLOATS)
@pytest.mark.parametrize(("t", "k", "group"), SHAPES)
def test_rows(device, dtype, floating, t: int, k: int, group: int) -> None:
    from roundsmith.kernels.gpu import quantize

    x = floats(t, k, floating)
    expected = activations.quantize_rows(x, dtype, group)
    found = quantize.quantize_rows(x.to(device), dtype, group)
    assert same_bits(expected[1], found[1])
    assert same_bits(expected[0], found[0])


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize(
    "scale", [1e-40, 1e-38, 1e-30, 1e-10, 1e10, 1e37], ids=lambda scale: f"{scale:g}"
)
def test_extreme_magnitudes(device, dtype, scale: float) -> None:
    """Denormals, magnitudes under the floor of scales, and nearly float32's maximum."""
    from roundsmith.kernels.gpu import quantize

    x = floats(9, 96, scale=scale)
    expected = activations.quantize_rows(x, dtype, 32)
    found = quantize.quantize_rows(x.to(device), dtype, 32)
    assert same_bits(expected[1], found[1])
    assert same_bits(expected[0], found[0])


@pytest.mark.parametrize("dtype", CODES)
def test_every_tie_and_every_small_code(device, dtype) -> None:
    """All codes and all midpoints between them, under a scale of exactly one."""
    from roundsmith.kernels.gpu import quantize

    largest = 127.0 if dtype == torch.int8 else 448.0
    grid = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    grid = grid[grid.abs() <= largest].sort().values.unique()
    midpoints = (grid[1:] + grid[:-1]) / 2
    beside = torch.cat([midpoints * (1 - 1e-6), midpoints * (1 + 1e-6)])
    x = torch.cat([grid, midpoints, beside]).clamp(-largest, largest).float()[None, :]
    expected = activations.quantize_rows(x, dtype, x.shape[1])
    assert expected[1].item() == 1.0
    assert same_bits(expected[0], quantize.quantize_rows(x.to(device), dtype, x.shape[1])[0])


@pytest.mark.parametrize("dtype", CODES)
def test_zeros_and_nan(device, dtype) -> None:
    from roundsmith.kernels.gpu import quantize

    x = floats(4, 64)
    x[0, :32] = 0
    x[1] = -0.0
    x[3, 40] = torch.nan
    expected = activations.quantize_rows(x, dtype, 32)
    found = quantize.quantize_rows(x.to(device), dtype, 32)
    assert found[1].cpu().isnan().nonzero().tolist() == [[3, 1]]
    fine = ~expected[1].isnan()
    assert same_bits(expected[1][fine], found[1].cpu()[fine])
    assert same_bits(expected[0][:3], found[0][:3])
    assert not found[0][0, :32].float().any()


def test_inputs_that_are_not_contiguous(device) -> None:
    from roundsmith.kernels.gpu import dequantize, quantize

    x = floats(96, 70).to(device)
    for view in (x.t(), x[:, ::2], x[3:50, 4:36], x[:1].expand(5, 70)):
        expected = activations.quantize_rows(view.cpu(), torch.int8, view.shape[1])
        found = quantize.quantize_rows(view, torch.int8, view.shape[1])
        assert same_bits(expected[0], found[0])
        assert same_bits(expected[1], found[1])
    stored = codes(64, 48, torch.int8).to(device).t()
    scale = positive(48, 1).to(device)
    assert same_bits(blocks.dequantize(stored, scale), dequantize.dequantize(stored, scale))


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("floating", FLOATS)
@pytest.mark.parametrize(
    ("m", "n", "rows", "cols"),
    [(96, 40, 24, 20), (128, 256, 128, 128), (64, 192, 64, 64), (33, 65, 1, 65), (8, 96, 1, 32)],
)
def test_blocks(device, dtype, floating, m: int, n: int, rows: int, cols: int) -> None:
    from roundsmith.kernels.gpu import quantize

    w = floats(m, n, floating)
    w[:rows, :cols] = 0
    expected = activations.quantize_blocks(w, dtype, rows, cols)
    found = quantize.quantize_blocks(w.to(device), dtype, rows, cols)
    assert same_bits(expected[1], found[1])
    assert same_bits(expected[0], found[0])


@pytest.mark.parametrize("dtype", [*CODES, torch.float8_e5m2])
@pytest.mark.parametrize("floating", FLOATS)
@pytest.mark.parametrize(
    ("m", "n", "rows", "cols"), [(1, 17, 1, 17), (33, 65, 33, 13), (130, 257, 1, 257)]
)
def test_dequantize(device, dtype, floating, m: int, n: int, rows: int, cols: int) -> None:
    from roundsmith.kernels.gpu import dequantize

    stored = torch.randint(0, 255, (m, n), dtype=torch.uint8)
    stored = stored.where((stored & 0x7F) < 0x7C, 0).view(dtype)  # neither infinite nor NaN
    scale = positive(m // rows, n // cols)
    expected = blocks.dequantize(stored, scale, floating)
    found = dequantize.dequantize(stored.to(device), scale.to(device), floating)
    if floating == torch.bfloat16:
        torch.testing.assert_close(found.cpu(), expected, rtol=2**-7, atol=0)
    else:
        assert same_bits(expected, found)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize(("t", "k", "group"), [(1, 17, 17), (33, 66, 33), (5, 256, 64)])
def test_gelu(device, dtype, approximate: str, coded: bool, t: int, k: int, group: int) -> None:
    """Codes may differ where a value lies on the edge of two: by one step, and rarely."""
    from roundsmith.kernels.gpu import quantize

    x = codes(t, k, dtype) if coded else floats(t, k, scale=3)
    x_scale = positive(t, k // group) / 20 if coded else None
    expected = activations.gelu_quantize(x, x_scale, dtype, group, approximate)
    given = None if x_scale is None else x_scale.to(device)
    found = quantize.gelu_quantize(x.to(device), given, dtype, group, approximate)
    torch.testing.assert_close(found[1].cpu(), expected[1], rtol=1e-6, atol=1e-30)
    decoded = [blocks.dequantize(c.cpu(), s.cpu()) for c, s in (expected, found)]
    step = 0.004 if dtype == torch.int8 else 0.07  # of one code, over a group's maximum
    assert relative_error(*decoded) < step
    assert (expected[0].float() != found[0].cpu().float()).float().mean() < 0.02


def test_gelu_of_large_inputs(device) -> None:
    """Far out, GELU is the identity or zero; nothing overflows on the way."""
    from roundsmith.kernels.gpu import quantize

    x = torch.tensor([[3e38, -3e38, 1e20, -1e20, 50.0, -50.0, 0.0, -0.0]]).to(device)
    for approximate in ("tanh", "none"):
        found, scale = quantize.gelu_quantize(x, None, torch.int8, 8, approximate)
        assert found.tolist() == [[127, 0, 0, 0, 0, 0, 0, 0]]
        assert scale.isfinite().all()


def test_nothing_to_quantize(device) -> None:
    from roundsmith.kernels.gpu import dequantize, quantize

    found = quantize.quantize_rows(torch.empty(0, 64, device=device), torch.int8, 32)
    assert (found[0].shape, found[1].shape) == ((0, 64), (0, 2))
    assert dequantize.dequantize(*found).shape == (0, 64)
