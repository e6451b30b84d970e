"""What every format promises. A format's test inherits :class:`FormatContract` and names the
format.

Numbers come from comfy-kitchen's eager encoders, from float64 arithmetic, or from trying every
code.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from roundsmith import Recipe, load_file, quantize_file
from roundsmith.converters.rounding import nearest, scale_search
from roundsmith.layouts import Format, Spec, get_format
from roundsmith.layouts.codec import combine, decode
from roundsmith.layouts.grids import CodebookGrid

KINDS = ("random", "constant", "zero", "outliers", "zero blocks", "tiny", "one row")


def weights(kind: str, m: int = 256, n: int = 256) -> Tensor:
    """A float32 matrix of a kind that has broken encoders."""
    generator = torch.Generator().manual_seed(sum(map(ord, kind)))
    w = torch.randn(m, n, generator=generator)
    if kind == "constant":
        return torch.full((m, n), -0.3)
    if kind == "zero":
        return torch.zeros(m, n)
    if kind == "outliers":
        w[torch.rand(m, n, generator=generator) < 0.003] *= 300
    if kind == "zero blocks":
        w[: m // 2, : n // 2] = 0
    if kind == "tiny":
        w *= 1e-24
    if kind == "one row":
        return w[:1]
    return w


def snr(reference: Tensor, other: Tensor) -> float:
    """10·log10(‖a‖² / ‖a − b‖²), dB, in float64."""
    reference, other = reference.double(), other.double()
    return 10 * math.log10(reference.square().sum() / (reference - other).square().sum())


def bits(t: Tensor) -> Tensor:
    """The tensor's bytes, flat."""
    return t.contiguous().reshape(-1).view(torch.uint8)


class FormatContract:
    """Inherit as ``class TestX(FormatContract)``."""

    FORMAT: ClassVar[str]
    OPTIONS: ClassVar[dict[str, Any]] = {}
    MIN_SNR: ClassVar[float]
    """Weight SNR of Gaussian weights under nearest rounding, dB, less half a dB."""
    ACTIVATION_SNR: ClassVar[float] = math.inf
    """Where the CPU quantizes activations: the SNR of the product that this leaves at least, dB."""

    HALF_ATOL: ClassVar[float] = 0.0
    """By how much weights decoded in bfloat16 may be off beside their own rounding."""

    @property
    def fmt(self) -> Format:
        return get_format(self.FORMAT)

    def spec(self, shape: tuple[int, int] = (256, 256)) -> Spec:
        fitted = self.fmt.fit(self.fmt.bind(features=shape[1], **self.OPTIONS), shape)
        assert fitted.spec is not None, fitted.note
        return fitted.spec

    def encode(self, w: Tensor, solver: Any = nearest) -> dict[str, Tensor]:
        shape = (w.shape[0], w.shape[1])
        spec = self.spec(shape)
        grid = self.fmt.grid_for(spec)
        codes, scales = solver(self.fmt.transform(w.clone(), spec), grid, self.fmt.geometry(spec))
        padded = self.fmt.padded_shape(shape)
        return {
            "weight": self.fmt.pack_codes(codes, spec),
            **self.fmt.pack_scales(scales, spec, padded),
            **self.fmt.pack_grid(grid),
        }

    def kinds(self) -> list[str]:
        """The kinds of weights this format takes (a row is no square block)."""
        fits = self.fmt.fit(self.fmt.bind(features=256, **self.OPTIONS), (1, 256)).spec
        return [kind for kind in KINDS if kind != "one row" or fits is not None]

    # ---- the file ----------------------------------------------------------------------------

    def test_stored_tensors_are_what_the_plan_says(self) -> None:
        for kind in self.kinds():
            w = weights(kind)
            shape = (w.shape[0], w.shape[1])
            found = {s: (t.dtype, tuple(t.shape)) for s, t in self.encode(w).items()}
            assert found == self.fmt.storage(self.spec(shape), shape), kind

    def test_packing_loses_nothing(self) -> None:
        for kind in self.kinds():
            w = weights(kind)
            shape = (w.shape[0], w.shape[1])
            spec = self.spec(shape)
            grid = self.fmt.grid_for(spec)
            codes, scales = nearest(self.fmt.transform(w, spec), grid, self.fmt.geometry(spec))
            parts = {
                "weight": self.fmt.pack_codes(codes, spec),
                **self.fmt.pack_scales(scales, spec, self.fmt.padded_shape(shape)),
                **self.fmt.pack_grid(grid),
            }
            back = self.fmt.unpack(parts, self.fmt.conf(spec, shape))
            assert torch.equal(bits(back.codes), bits(codes)), kind
            assert torch.equal(back.scales.effective, scales.effective), kind
            assert torch.equal(back.grid.decode(codes), grid.decode(codes)), kind

    def test_json_is_flat_and_names_the_format(self) -> None:
        conf = self.fmt.conf(self.spec(), (256, 256))
        assert conf["format"] == self.FORMAT
        assert not any(isinstance(value, dict) for value in conf.values())
        assert json.loads(json.dumps(conf)) == conf

    # ---- rounding ----------------------------------------------------------------------------

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor] | None:
        """The same weights through comfy-kitchen's eager encoder, or None where it has none."""
        return None

    def test_codes_are_comfy_kitchens_to_the_last_bit(self) -> None:
        compared = 0
        for kind in self.kinds():
            w = weights(kind)
            expected = self.kitchen(w, self.spec((w.shape[0], w.shape[1])))
            if expected is None or (kind == "zero" and not self.kitchen_divides_zero_safely):
                continue
            compared += 1
            found = self.encode(w)
            for suffix, tensor in expected.items():
                assert found[suffix].shape == tensor.shape, (kind, suffix)
                assert torch.equal(bits(found[suffix]), bits(tensor)), (kind, suffix)
        assert compared or self.kitchen(weights("random"), self.spec()) is None

    kitchen_divides_zero_safely: ClassVar[bool] = True

    def test_no_other_code_is_nearer(self) -> None:
        w = weights("outliers", 128, 256)
        spec = self.spec((128, 256))
        scaled = self.fmt.transform(w, spec)
        grid = self.fmt.grid_for(spec)
        codes, scales = nearest(scaled.clone(), grid, self.fmt.geometry(spec))
        rows, cols = self.fmt.geometry(spec).block((128, 256))
        factor = scales.effective.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
        values = self.grid_values()
        if scales.between is not None:  # what values are rounded to depends on the block
            least = torch.full((128, 256), math.inf, dtype=torch.float64)
            for value in values.float():
                other = combine(value.expand(128, 256), scales)
                least = torch.minimum(least, (other.double() - scaled.double()).abs())
            found = (decode(codes, grid, scales).double() - scaled.double()).abs()
            assert (found <= least * (1 + 1e-5) + 1e-5 * factor).all()
            return
        target = scaled.double() / factor.double()
        distance = (grid.decode(codes).double() - target).abs()
        nearest_one = (target.flatten()[:, None] - values).abs().amin(dim=1).view_as(target)
        assert (distance <= nearest_one * (1 + 1e-5) + 1e-5).all()

    def grid_values(self) -> Tensor:
        """Every value a code can take, float64."""
        grid = self.fmt.grid_for(self.spec())
        if isinstance(grid, CodebookGrid):
            return torch.tensor(grid.values).double()
        if grid.name == "e2m1":
            return grid.decode(torch.arange(16)).double()
        values = torch.arange(256, dtype=torch.uint8).view(grid.dtype).double()
        return values[values.abs() <= grid.max]

    def test_weights_keep_their_quality(self) -> None:
        w = weights("random")
        conf = self.fmt.conf(self.spec(), (256, 256))
        assert snr(w, self.fmt.decode(self.encode(w), conf)) >= self.MIN_SNR

    def test_scale_search_is_never_worse(self) -> None:
        gained = 0.0
        for kind in self.kinds():
            w = weights(kind)
            conf = self.fmt.conf(self.spec((w.shape[0], w.shape[1])), (w.shape[0], w.shape[1]))
            plain = (self.fmt.decode(self.encode(w), conf) - w).double().square().sum()
            found = (
                (self.fmt.decode(self.encode(w, scale_search), conf) - w).double().square().sum()
            )
            assert found <= plain * (1 + 1e-6), kind
            gained += float(plain - found)
        assert gained > 0

    # ---- running -----------------------------------------------------------------------------

    def quantized(self, w: Tensor, dtype: torch.dtype = torch.float32) -> QuantizedTensor:
        shape = (w.shape[0], w.shape[1])
        conf = self.fmt.conf(self.spec(shape), shape)
        return self.fmt.read(self.encode(w), conf, shape, dtype)

    def test_running_tensor_decodes_to_the_same_weights(self) -> None:
        for kind in self.kinds():
            w = weights(kind)
            shape = (w.shape[0], w.shape[1])
            expected = self.fmt.decode(self.encode(w), self.fmt.conf(self.spec(shape), shape))
            found = self.quantized(w).dequantize()
            assert found.shape == w.shape
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("inference", [False, True])
    @pytest.mark.parametrize("biased", [False, True])
    def test_linear(self, inference: bool, biased: bool) -> None:
        w, x = weights("random"), torch.randn(3, 5, 256)
        bias = torch.randn(256) if biased else None
        conf = self.fmt.conf(self.spec(), (256, 256))
        exact = x.double() @ self.fmt.decode(self.encode(w), conf).double().t()
        with torch.inference_mode(inference), torch.no_grad():
            found = torch.nn.functional.linear(x, self.quantized(w), bias)
        assert found.shape == (3, 5, 256)
        assert found.dtype == torch.float32
        assert snr(exact + (0 if bias is None else bias), found) >= min(self.ACTIVATION_SNR, 100)

    def test_transposed_inputs(self) -> None:
        """What ``flatten(2).transpose(1, 2)`` gives: rows that are not contiguous."""
        q, x = self.quantized(weights("random")), torch.randn(1, 256, 7).transpose(1, 2)
        with torch.inference_mode():
            found = torch.nn.functional.linear(x, q)
        assert snr(torch.nn.functional.linear(x.contiguous(), q), found) > 100
        again = q.requantize_from_float(weights("random").t().contiguous().t()).dequantize()
        once = q.requantize_from_float(weights("random")).dequantize()
        # a rotation may sum in another order: a code in a million then falls the other way
        assert torch.equal(again, once) or snr(once, again) > 40

    def test_moving_and_casting_keep_the_weights(self) -> None:
        q = self.quantized(weights("random"))
        half = q.to(torch.bfloat16)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(
            half.dequantize().float(), q.dequantize(), rtol=2**-7, atol=self.HALF_ATOL
        )
        assert torch.equal(q.detach().clone().dequantize(), q.dequantize())
        assert torch.equal(q.t().t().dequantize(), q.dequantize())
        assert torch.equal(q.t().dequantize(), q.dequantize().t())

    def test_rounding_again_keeps_the_scale_geometry(self) -> None:
        """What LoRA does to a weight: decode, add, quantize with the layout's own options."""
        q = self.quantized(weights("random"))
        again = q.requantize_from_float(q.dequantize() + 0.01, scale="recalculate")
        assert again._params.scale.shape == q._params.scale.shape
        assert again._qdata.dtype == q._qdata.dtype
        assert again._qdata.shape == q._qdata.shape
        assert snr(q.dequantize() + 0.01, again.dequantize()) >= self.MIN_SNR - 2

    # ---- shapes that do not fit --------------------------------------------------------------

    def test_only_matrices_are_taken(self) -> None:
        spec = self.fmt.bind(features=256, **self.OPTIONS)
        for shape in ((64,), (64, 64, 3, 3), (0, 64), (64, 0)):
            fit = self.fmt.fit(spec, shape)
            assert fit.spec is None
            assert fit.note

    @pytest.mark.parametrize("shape", [(257, 250), (1, 250), (250, 1), (192, 192), (3, 1000)])
    def test_awkward_shapes_fit_by_a_stated_rule(self, shape: tuple[int, int]) -> None:
        """Padded, a smaller block, unrotated, or kept with a reason; never an exception."""
        asked = self.fmt.bind(features=shape[1], **self.OPTIONS)
        fit = self.fmt.fit(asked, shape)
        if fit.spec is None:
            assert str(shape) in fit.note
            return
        assert fit.note or fit.spec == asked
        w = weights("random", *shape)
        scaled, grid = self.fmt.transform(w, fit.spec), self.fmt.grid_for(fit.spec)
        codes, scales = nearest(scaled.clone(), grid, self.fmt.geometry(fit.spec))
        assert snr(scaled, decode(codes, grid, scales)) > 15

    # ---- file to file ------------------------------------------------------------------------

    def test_through_a_file(self, tmp_path: Path) -> None:
        source = {
            "blocks.0.fc.weight": weights("random", 384, 256).bfloat16(),
            "blocks.0.fc.bias": torch.randn(384).bfloat16(),
            "blocks.1.fc.weight": weights("zero blocks", 256, 512),
            "blocks.1.norm.weight": torch.ones(512),
        }
        save_file(source, tmp_path / "in.safetensors", metadata={"note": "kept"})
        recipe = Recipe(format=self.FORMAT, rounding="nearest", preset=None, **self.OPTIONS)
        report = quantize_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", recipe)
        assert report.quantized == 2
        with safe_open(tmp_path / "out.safetensors", "pt") as file:
            metadata = file.metadata()
            header = json.loads(metadata["_quantization_metadata"])
            for layer, conf in header["layers"].items():
                stored = file.get_tensor(f"{layer}.comfy_quant")
                assert json.loads(bytes(stored.tolist())) == conf
            assert set(header["layers"]) == {"blocks.0.fc", "blocks.1.fc"}
            assert metadata["note"] == "kept"
            assert Recipe.from_json(metadata["roundsmith_recipe"]) == recipe
            found = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        for layer in ("blocks.0.fc", "blocks.1.fc"):
            expected = self.encode(source[f"{layer}.weight"].float())
            for suffix, tensor in expected.items():
                stored = found[f"{layer}.{suffix}"]
                assert torch.equal(bits(stored), bits(tensor)), suffix
        loaded = load_file(tmp_path / "out.safetensors", dtype=torch.float32)
        assert torch.equal(loaded["blocks.0.fc.bias"], source["blocks.0.fc.bias"])
        for layer in ("blocks.0.fc", "blocks.1.fc"):
            weight = loaded[f"{layer}.weight"]
            assert isinstance(weight, QuantizedTensor)
            assert snr(source[f"{layer}.weight"], weight.dequantize()) >= self.MIN_SNR - 1.5
