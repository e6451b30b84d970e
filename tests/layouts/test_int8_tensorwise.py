import pytest
import torch
from comfy_kitchen.backends.eager.quantization import (
    quantize_int8_convrot_weight,
    quantize_int8_rowwise,
    quantize_int8_tensorwise,
)
from torch import Tensor

from roundsmith.errors import FormatError
from roundsmith.layouts import Spec, get_format, identify

from ..contract import FormatContract, weights


class Int8Contract(FormatContract):
    FORMAT = "int8_tensorwise"
    MIN_SNR = 42.0
    ACTIVATION_SNR = 39.0


class TestInt8Row(Int8Contract):
    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor]:
        codes, scale = quantize_int8_rowwise(w)
        return {"weight": codes, "weight_scale": scale}

    def test_row_scales_without_a_second_dimension_are_mended(self) -> None:
        """Core would broadcast ``[M]`` along the columns in silence."""
        parts = self.encode(weights("random"))
        flat = {**parts, "weight_scale": parts["weight_scale"].flatten()}
        assert torch.equal(self.fmt.decode(flat, {}), self.fmt.decode(parts, {}))
        assert self.fmt.read(flat, {})._params.scale.shape == (256, 1)


    def test_a_layer_of_zeros_may_come_without_a_scale(self) -> None:
        empty = {"weight_scale": torch.ones(0, 0)}
        zeros = torch.zeros(64, 64, dtype=torch.int8)
        assert identify({"format": self.FORMAT}, {"weight": (64, 64), "weight_scale": (0, 0)},
                        torch.int8, "layer").id == self.FORMAT  # fmt: skip
        assert not self.fmt.decode({"weight": zeros, **empty}, {}).any()
        with pytest.raises(FormatError, match="the scale is empty, but there are codes"):
            self.fmt.decode({"weight": zeros + 1, **empty}, {})


class TestInt8Tensor(Int8Contract):
    OPTIONS = {"scaling": "tensor"}  # noqa: RUF012
    MIN_SNR = 39.0

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor]:
        codes, scale = quantize_int8_tensorwise(w)
        return {"weight": codes, "weight_scale": scale}


class TestInt8ConvRot(Int8Contract):
    OPTIONS = {"convrot": 64}  # noqa: RUF012

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor]:
        codes, scale = quantize_int8_convrot_weight(w, 64)
        return {"weight": codes, "weight_scale": scale}

    def test_auto_takes_the_largest_group_that_divides(self) -> None:
        for features, group in ((1024, 1024), (3072, 1024), (1280, 256), (192, None)):
            assert self.fmt.bind(convrot="auto", features=features).convrot == group

    def test_a_group_no_runtime_rotates_by_is_refused(self) -> None:
        parts = self.encode(weights("random"))
        with pytest.raises(FormatError, match="group size 128 is not one of"):
            self.fmt.read(parts, {"convrot": True, "convrot_groupsize": 128})

    def test_rotation_needs_row_scales(self) -> None:
        with pytest.raises(FormatError, match="needs scaling 'row'"):
            self.fmt.bind(convrot=64, scaling="tensor")


@pytest.mark.parametrize(
    ("label", "scale", "expected"),
    [
        ("int8_tensorwise", (128,), "int8_tensorwise"),
        ("int8_blockwise", (128, 1), "int8_tensorwise"),
        ("int8_lodewise", (128, 1), "int8_lodewise"),
        ("int8_blockwise", (128,), "int8_tensorwise"),
        ("int8_blockwise", (), "int8_tensorwise"),
        ("int8_blockwise", (128, 4), "int8_lodewise"),
        ("int8_tensorwise", (1, 2), "int8_blockwise"),
    ],
)
def test_shapes_decide(label: str, scale: tuple[int, ...], expected: str) -> None:
    """A converter of legacy files labels row scales "blockwise"."""
    shapes = {"weight": (128, 256), "weight_scale": scale}
    assert identify({"format": label}, shapes, torch.int8, "layer").id == expected


def test_float64_says_the_same() -> None:
    """Arithmetic in float32 costs no quality: within 0.05 dB of float64, per row."""
    w = weights("random", 512, 1024)
    fmt = get_format("int8_tensorwise")
    codes = w.double() / (w.double().abs().amax(dim=1, keepdim=True) / 127)
    exact = codes.round() * (w.double().abs().amax(dim=1, keepdim=True) / 127)
    from roundsmith.converters.rounding import nearest

    found, scales = nearest(w.clone(), fmt.grid, fmt.geometry(fmt.bind()))
    ours = found.double() * scales.block.double()
    noise = [(w.double() - x).square().sum().log10() * 10 for x in (exact, ours)]
    assert abs(noise[0] - noise[1]) < 0.05
