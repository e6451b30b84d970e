"""Triton's four-bit kernels against the eager reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roundsmith.kernels import four_bit
from roundsmith.kernels.tiles import Tile

from .cases import FLOATS, ROUNDING, floats, generator, positive, relative_error, same_bits
from .conftest import INTERPRETED

TABLE = torch.linspace(-1, 1, 16) ** 3
SHAPES = [(33, 66, 64), (70, 256, 64), (5, 130, 64), (17, 384, 128), (257, 32, 64)]


def weight(m: int, n: int, group: int) -> Any:
    packed = torch.randint(0, 256, (-(-m * n // 2),), dtype=torch.uint8, generator=generator(m, n))
    return packed, positive(-(-m * n // group)), TABLE, group, (m, n)


def moved(device, given) -> Any:
    return [value.to(device) if isinstance(value, torch.Tensor) else value for value in given]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "group"), [*SHAPES, (1, 17, 64), (3, 5, 6)])
def test_dequantize(device, dtype, m: int, n: int, group: int) -> None:
    """Odd counts leave half a byte; the last group may be short."""
    from roundsmith.kernels.gpu import four_bit as gpu

    given = weight(m, n, group)
    expected = four_bit.dequantize_4bit(*given, dtype)
    found = gpu.dequantize_4bit(*moved(device, given), dtype)
    if dtype == torch.bfloat16:
        torch.testing.assert_close(found.cpu(), expected, rtol=2**-7, atol=0)
    else:
        assert same_bits(expected, found)


def test_high_nibble_comes_first(device) -> None:
    from roundsmith.kernels.gpu import four_bit as gpu

    packed, one = torch.tensor([0x72, 0x0F], dtype=torch.uint8), torch.ones(1)
    table = torch.arange(16.0)
    given = moved(device, (packed, one, table, 64, (1, 4)))
    assert gpu.dequantize_4bit(*given, torch.float32).tolist() == [[7, 2, 0, 15]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("t", [1, 16])
@pytest.mark.parametrize(("biased", "split"), [(False, 1), (True, 1), (True, 3)])
@pytest.mark.parametrize(("m", "n", "group"), SHAPES)
def test_linear(device, dtype, t: int, biased: bool, split: int, m: int, n: int, group: int):
    from roundsmith.kernels.gpu import four_bit as gpu

    given, x = weight(m, n, group), floats(t, n, dtype)
    bias = floats(1, m, dtype)[0] if biased else None
    decoded = four_bit.dequantize_4bit(*given, dtype).double()
    exact = x.double() @ decoded.t() + (0 if bias is None else bias.double())
    found = gpu.linear_4bit(
        x.to(device), *moved(device, given), None if bias is None else bias.to(device),
        tile=Tile(16, 32, 64, split=split), interpreted=INTERPRETED,
    )  # fmt: skip
    assert found.dtype == dtype
    assert found.shape == (t, m)
    # Twice: the interpreter cuts the decoded weight off as well as the result.
    assert relative_error(exact, found) < 2 * ROUNDING[dtype]


def test_other_shapes_of_inputs(device) -> None:
    from roundsmith.kernels.gpu import four_bit as gpu

    given = weight(40, 128, 64)
    x = floats(128, 12).t().reshape(3, 4, 128).transpose(0, 1)
    expected = four_bit.linear_4bit(x, *given, None)
    options = {"tile": Tile(16, 16, 32), "interpreted": INTERPRETED}
    found = gpu.linear_4bit(x.to(device), *moved(device, given), None, **options)
    assert found.shape == (4, 3, 40)
    assert relative_error(expected, found) < ROUNDING[torch.float32]
    nothing = gpu.linear_4bit(x[:0].to(device), *moved(device, given), None, **options)
    assert nothing.shape == (0, 3, 40)
