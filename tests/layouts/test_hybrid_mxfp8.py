"""Hybrid MXFP8: MXFP8's tensors, run as FP8 where the hardware has no MXFP8."""

from __future__ import annotations

from pathlib import Path

import comfy_kitchen
import comfy_kitchen.tensor.mxfp8
import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor
from safetensors.torch import load_file as load_plain
from safetensors.torch import save_file
from torch import Tensor

from roundsmith import Recipe, load_file, quantize_file
from roundsmith.converters.rounding import nearest
from roundsmith.layouts import Spec, get_format, hybrid_tensor
from roundsmith.layouts.codec import with_peak

from ..contract import KINDS, FormatContract, bits, snr, weights
from .test_mxfp8 import TestMXFP8

FORMS = ("largest", "tight")


def parts(w: Tensor, form: str) -> dict[str, Tensor]:
    fmt = get_format("hybrid_mxfp8")
    spec = fmt.bind(form=form)
    shape = (w.shape[0], w.shape[1])
    codes, scales = nearest(fmt.transform(w.clone(), spec), fmt.grid, fmt.geometry(spec))
    scales = with_peak(codes, fmt.grid, scales)
    stored = fmt.pack_scales(scales, spec, fmt.padded_shape(shape))
    return {"weight": fmt.pack_codes(codes, spec), **stored}


def running(w: Tensor, form: str, dtype: torch.dtype = torch.float32) -> QuantizedTensor:
    return get_format("hybrid_mxfp8").read(parts(w, form), {}, (w.shape[0], w.shape[1]), dtype)


class TestHybrid(FormatContract):
    FORMAT = "hybrid_mxfp8"
    MIN_SNR = 31.0
    ACTIVATION_SNR = 30.0

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor] | None:
        return TestMXFP8().kitchen(w, spec)

    def test_running_tensor_decodes_to_the_same_weights(self) -> None:
        """But for the subnormal values of FP8 under one scale."""
        for kind in self.kinds():
            w = weights(kind)
            expected = self.fmt.decode(self.encode(w), {}, (w.shape[0], w.shape[1]))
            found = self.quantized(w).dequantize()
            assert found.shape == w.shape
            if kind == "zero":
                assert not found.any()
            else:
                assert snr(expected, found) > 80, kind

    def test_rounding_again_keeps_the_scale_geometry(self) -> None:
        super().test_rounding_again_keeps_the_scale_geometry()
        for form in FORMS:
            q = running(weights("random"), form)
            again = get_format(self.FORMAT).parts_of(q.requantize_from_float(q.dequantize() + 0.01))
            expected = parts(q.dequantize() + 0.01, form)
            for suffix, tensor in expected.items():
                assert torch.equal(bits(again[suffix]), bits(tensor)), (form, suffix)


@pytest.fixture
def blackwell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that multiplies MXFP8; its product is decoded, which a CPU can do."""

    def product(
        a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        x, w = (
            comfy_kitchen.dequantize_mxfp8(codes, scale, torch.float32)
            for codes, scale in ((a, scale_a), (b, scale_b))
        )
        y = x @ w.t()
        if bias is not None:
            y[:, : len(bias)] += bias
        return y.to(out_dtype)

    monkeypatch.setattr(hybrid_tensor, "multiplies_mxfp8", lambda: True)
    monkeypatch.setattr(comfy_kitchen.tensor.mxfp8, "_mxfp8_scaled_mm", product)


class TestHybridAsMXFP8(TestHybrid):
    @pytest.fixture(autouse=True)
    def _machine(self, blackwell: None) -> None:
        assert get_format(self.FORMAT).layout == "RoundsmithHybridMXFP8Layout"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [*KINDS, "awkward"])
@pytest.mark.parametrize("mx", [False, True])
def test_saving_gives_back_what_was_stored(
    kind: str, form: str, mx: bool, request: pytest.FixtureRequest
) -> None:
    if mx:
        request.getfixturevalue("blackwell")
    w = weights("random", 50, 40) if kind == "awkward" else weights(kind)
    stored = parts(w, form)
    weight = get_format("hybrid_mxfp8").read(stored, {}, (w.shape[0], w.shape[1]))
    for moved in (weight, weight.to(torch.float32).detach().clone(), weight.t().t()):
        back = get_format("hybrid_mxfp8").parts_of(moved)
        assert back.keys() == stored.keys()
        for suffix, tensor in stored.items():
            assert torch.equal(bits(back[suffix]), bits(tensor)), suffix


@pytest.mark.parametrize("form", FORMS)
def test_fp8_codes_are_derived_from_blocks_and_scalar(form: str) -> None:
    w = weights("outliers", 96, 64)
    stored = parts(w, form)
    decoded = get_format("mxfp8").decode(stored, {})
    weight = running(w, form)
    scalar = stored["weight_scalar"]
    assert weight._qdata.dtype == torch.float8_e4m3fn
    assert torch.equal(weight._params.scale, scalar)
    expected = (decoded / scalar).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(bits(weight._qdata), bits(expected))
    assert scalar == (decoded.abs().max() / 448 if form == "tight" else 2.0 ** scalar.log2())


def test_the_largest_block_scale_rounds_nothing_twice() -> None:
    w = weights("random")
    decoded = get_format("mxfp8").decode(parts(w, "largest"), {})
    assert snr(decoded, running(w, "largest").dequantize()) > 80
    assert snr(w, running(w, "largest").dequantize()) > snr(w, running(w, "tight").dequantize()) + 2


@pytest.mark.parametrize("form", [None, *FORMS])
def test_through_a_file_in_either_form(tmp_path: Path, form: str | None) -> None:
    source = {"blocks.0.fc.weight": weights("random", 96, 72), "blocks.0.fc.bias": torch.ones(96)}
    save_file(source, tmp_path / "in.safetensors")
    for rounding in ("nearest", "learned"):
        recipe = Recipe(format="hybrid_mxfp8", form=form, rounding=rounding, preset=None)
        quantize_file(
            tmp_path / "in.safetensors", tmp_path / "out.safetensors", recipe, overwrite=True
        )
        stored = load_plain(tmp_path / "out.safetensors")
        fmt = get_format("mxfp8")
        mine = {k.removeprefix("blocks.0.fc."): v for k, v in stored.items()}
        decoded = fmt.decode(mine, {"orig_shape": [96, 72]})
        if form == "tight":
            assert mine["weight_scalar"] == decoded.abs().max() / 448
        else:
            assert mine["weight_scalar"] == 2.0 ** mine["weight_scalar"].log2()
            assert decoded.abs().max() / 448 <= mine["weight_scalar"]
        loaded = load_file(tmp_path / "out.safetensors", dtype=torch.float32)["blocks.0.fc.weight"]
        assert snr(source["blocks.0.fc.weight"], loaded.dequantize()) > 26


def test_adding_in_place_changes_what_is_saved() -> None:
    weight = running(weights("random"), "largest")
    before = weight.dequantize()
    weight.add_(torch.full((256, 256), 0.5))
    back = get_format("mxfp8").decode(get_format("hybrid_mxfp8").parts_of(weight), {})
    assert snr(before + 0.5, back) > 28
