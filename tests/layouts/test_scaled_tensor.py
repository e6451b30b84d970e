"""Operations on the QuantizedTensor layouts that are ours, beyond linear."""

import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor

from roundsmith.layouts import get_format

from ..contract import snr, weights

OURS = [
    "float8_e4m3fn_rowwise",
    "float8_e4m3fn_blockwise",
    "float8_e4m3fn_block3d",
    "int8_blockwise",
    "int8_lodewise",
]


def quantized(name: str, m: int = 256, n: int = 256) -> QuantizedTensor:
    fmt = get_format(name)
    spec = fmt.bind()
    rows, cols = fmt.geometry(spec).block((m, n))
    ndim = len(fmt.scale_shape(spec, (m, n)))
    return QuantizedTensor.from_float(
        weights("random", m, n), fmt.layout, block=(rows, cols), scale_ndim=ndim
    )


@pytest.fixture(params=OURS)
def q(request: pytest.FixtureRequest) -> QuantizedTensor:
    return quantized(request.param)


def test_products_by_every_road_agree(q: QuantizedTensor) -> None:
    """F.linear arrives whole or as t and mm / addmm, depending on the mode it runs in."""
    x, bias = torch.randn(7, 256), torch.randn(256)
    linear = torch.nn.functional.linear(x, q)
    assert torch.equal(torch.mm(x, q.t()), linear)
    assert torch.equal(torch.addmm(bias, x, q.t()), torch.nn.functional.linear(x, q, bias))
    assert torch.equal(torch.mm(x, q.transpose(0, 1)), linear)
    with torch.inference_mode():
        assert torch.equal(torch.nn.functional.linear(x, q), linear)
    # A weight that is not transposed has no fast road; it decodes.
    torch.testing.assert_close(torch.mm(x, q), x @ q.dequantize())
    torch.testing.assert_close(
        torch.addmm(bias, x, q.t(), beta=0.5), 0.5 * bias + x @ q.dequantize().t()
    )


def test_two_quantized_operands_multiply_as_codes(q: QuantizedTensor) -> None:
    """The result is that of the decoded operands, to float32 rounding: on every device the same."""
    group = 256 // q.layout_cls.scale_grid(q._qdata, q._params).shape[1]
    x = QuantizedTensor.from_float(torch.randn(9, 256), q._layout_cls, block=(1, group))
    exact = x.dequantize().double() @ q.dequantize().double().t()
    assert snr(exact, torch.nn.functional.linear(x, q)) > 120


def test_half_precision_inputs_give_half_precision_outputs(q: QuantizedTensor) -> None:
    x = torch.randn(4, 256, dtype=torch.bfloat16)
    y = torch.nn.functional.linear(x, q.to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert snr(x.float() @ q.dequantize().t(), y) > 35


def test_no_rows_give_no_rows(q: QuantizedTensor) -> None:
    assert torch.nn.functional.linear(torch.empty(0, 256), q).shape == (0, 256)


def test_views(q: QuantizedTensor) -> None:
    for shape in ((256, 256), (4, 64, 256), (-1, 256), (128, 512), (65536,)):
        assert torch.equal(_plain(q.view(shape)), q.dequantize().view(shape)), shape
        assert torch.equal(_plain(q.reshape(shape)), q.dequantize().view(shape)), shape
    assert torch.equal(_plain(q.t().reshape(2, -1)), q.dequantize().t().reshape(2, -1))


def _plain(t: torch.Tensor) -> torch.Tensor:
    return t.dequantize() if isinstance(t, QuantizedTensor) else t


def test_gelu_stays_quantized(q: QuantizedTensor) -> None:
    out = torch.nn.functional.gelu(q, approximate="tanh")
    assert isinstance(out, QuantizedTensor)
    assert out._params.scale.shape == q._params.scale.shape
    exact = torch.nn.functional.gelu(q.dequantize(), approximate="tanh")
    assert snr(exact, out.dequantize()) > 30


def test_adding_in_place_keeps_the_tensor_and_its_geometry(q: QuantizedTensor) -> None:
    expected, codes, shape = q.dequantize() + 1.0, q._qdata, q._params.scale.shape
    q.add_(torch.ones(256, 256))
    assert q._qdata is codes
    assert q._params.scale.shape == shape
    assert snr(expected, q.dequantize()) > 30


def test_other_operations_decode(q: QuantizedTensor) -> None:
    torch.testing.assert_close(q * 2, q.dequantize() * 2)
    torch.testing.assert_close(q.sum(), q.dequantize().sum())
    torch.testing.assert_close(torch.cat([q, q]), torch.cat([q.dequantize()] * 2))


def test_stochastic_rounding(q: QuantizedTensor) -> None:
    """The same seed gives the same codes, another seed others; the mean tends to the weight."""
    w = weights("random")

    def rounded(seed: int) -> torch.Tensor:
        options = {"scale": "recalculate", "stochastic_rounding": seed}
        return q.requantize_from_float(w, **options).dequantize()

    assert torch.equal(rounded(1), rounded(1))
    assert not torch.equal(rounded(1), rounded(2))
    mean = torch.stack([rounded(seed) for seed in range(1, 33)]).mean(dim=0)
    assert snr(w, mean) > snr(w, rounded(1)) + 10


def test_a_given_scale_is_kept(q: QuantizedTensor) -> None:
    again = q.requantize_from_float(q.dequantize(), scale=q._params.scale)
    assert torch.equal(again._params.scale, q._params.scale)
    assert torch.equal(again.dequantize(), q.dequantize())
