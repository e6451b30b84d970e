from typing import Any

import torch
from comfy_kitchen.backends.eager.quantization import quantize_per_tensor_fp8
from torch import Tensor

from roundsmith.layouts import Spec, identify

from ..contract import FormatContract, weights


class TestFloat8E4M3(FormatContract):
    FORMAT = "float8_e4m3fn"
    MIN_SNR = 31.0
    kitchen_divides_zero_safely = False  # it divides by a zero scale: NaN codes

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor]:
        scale = w.abs().amax() / 448.0
        return {"weight": quantize_per_tensor_fp8(w, scale), "weight_scale": scale}

    def test_zero_weights_stay_zero(self) -> None:
        parts = self.encode(weights("zero"))
        assert torch.equal(self.fmt.decode(parts, {}), weights("zero"))

    def test_plain_fp8_without_a_scale_is_scale_one(self) -> None:
        codes = weights("random").to(self.fmt.grid.dtype)
        assert torch.equal(self.fmt.decode({"weight": codes}, {}), codes.float())


class TestFloat8E5M2(TestFloat8E4M3):
    FORMAT = "float8_e5m2"
    MIN_SNR = 25.0

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor]:
        scale = w.abs().amax() / 57344.0
        codes = quantize_per_tensor_fp8(w, scale, torch.float8_e5m2)
        return {"weight": codes, "weight_scale": scale}


def test_shapes_decide_what_the_plain_name_stands_for() -> None:
    """Converters write row and block scales under the plain format's name, and the reverse."""
    stored: list[tuple[str, tuple[int, ...], str]] = [
        ("float8_e4m3fn", (), "float8_e4m3fn"),
        ("float8_e4m3fn", (1,), "float8_e4m3fn"),
        ("float8_e4m3fn", (128,), "float8_e4m3fn_rowwise"),
        ("float8_e4m3fn", (128, 1), "float8_e4m3fn_rowwise"),
        ("float8_e4m3fn", (2, 4), "float8_e4m3fn_blockwise"),
        ("float8_e4m3fn", (128, 4, 1), "float8_e4m3fn_block3d"),
        ("float8_e4m3fn_blockwise", (128,), "float8_e4m3fn_rowwise"),
        ("float8_e4m3fn_block3d", (2, 4), "float8_e4m3fn_blockwise"),
        ("float8_e4m3fn_rowwise", (), "float8_e4m3fn"),
        ("mxfp8", (), "float8_e4m3fn"),
    ]
    for label, scale, expected in stored:
        conf: dict[str, Any] = {"format": label}
        shapes = {"weight": (128, 256), "weight_scale": scale}
        assert identify(conf, shapes, torch.float8_e4m3fn, "layer").id == expected, (label, scale)
