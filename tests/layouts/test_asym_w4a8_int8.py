from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from comfy_kitchen.backends.eager.w4a8_int8 import (
    dequantize_w4a8_int8_weight,
    quantize_w4a8_int8_weight,
    w4a8_int8_linear,
)
from comfy_kitchen.tensor import QuantizedTensor, get_layout_class
from comfy_kitchen.tensor.w4a8_packed import _pack_codes, _unpack_codes
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from roundsmith import Recipe, load_file, quantize_file
from roundsmith.converters.rounding import nearest, scale_search
from roundsmith.errors import FormatError
from roundsmith.kernels import decode_grouped
from roundsmith.layouts import identify
from roundsmith.layouts.grouped_tensor import pack_grouped, register_grouped_layout
from roundsmith.layouts.transforms import rotate

from ..contract import FormatContract, snr, weights

NAMES = ("weight", "weight_s_rel", "weight_s_channel", "weight_correction", "weight_codebook")


class GroupedContract(FormatContract):
    FORMAT = "asym_w4a8_int8"
    ACTIVATION_SNR = 36.0
    HALF_ATOL = 0.03  # comfy-kitchen rounds to the dtype before it rotates back
    BITS: ClassVar[int]
    GROUP: ClassVar[int] = 256

    def theirs(self, w: Tensor, group: int = 0, **options: Any) -> dict[str, Tensor]:
        """Tensors of comfy-kitchen's encoder, by suffix."""
        group = group or self.GROUP
        made = quantize_w4a8_int8_weight(w, convrot_groupsize=group, bits=self.BITS, **options)
        return {name: t for name, t in zip(NAMES, made, strict=True) if t is not None}

    def decoded_by_kitchen(self, parts: dict[str, Tensor], group: int = 0) -> Tensor:
        codebook = parts.get("weight_codebook")
        return dequantize_w4a8_int8_weight(
            *(parts[name] for name in NAMES[:3]), codebook, parts.get("weight_correction"),
            convrot_groupsize=group or self.GROUP, output_dtype=torch.float32,
        )  # fmt: skip

    def conf_of(self, group: int = 0) -> dict[str, Any]:
        return {
            "format": self.FORMAT, "group_size": 16, "convrot_groupsize": group or self.GROUP
        }  # fmt: skip

    def test_kitchens_files_decode_to_kitchens_weights(self) -> None:
        for kind in self.kinds():
            for group in (16, 64, 256):
                parts = self.theirs(weights(kind), group)
                found = self.fmt.decode(parts, self.conf_of(group))
                expected = self.decoded_by_kitchen(parts, group)
                assert torch.equal(found, expected), (kind, group)

    def test_kitchen_decodes_our_files_to_our_weights(self) -> None:
        for kind in self.kinds():
            parts = self.encode(weights(kind))
            found = self.fmt.decode(parts, self.conf_of())
            assert torch.equal(found, self.decoded_by_kitchen(parts)), kind

    def test_codes_are_packed_as_kitchen_packs_them(self) -> None:
        draw = torch.Generator().manual_seed(0)
        codes = torch.randint(0, 1 << self.BITS, (8, 64), generator=draw, dtype=torch.int32)
        packed = pack_grouped(codes.to(torch.uint8), self.BITS)
        assert torch.equal(packed, _pack_codes(codes, self.BITS))
        assert torch.equal(_unpack_codes(packed, 64, self.BITS), codes)

    def test_better_than_kitchens_encoder(self) -> None:
        """Weights alone, no search: the lead that statistics add to is measured elsewhere."""
        w = weights("random")
        ours = self.fmt.decode(self.encode(w, scale_search), self.conf_of())
        assert snr(w, ours) > snr(w, self.decoded_by_kitchen(self.theirs(w))) - 0.1

    def test_scales_typed_uint8_are_read(self) -> None:
        parts = self.encode(weights("random"))
        typed = {**parts, "weight_s_rel": parts["weight_s_rel"].view(torch.uint8)}
        assert torch.equal(
            self.fmt.decode(typed, self.conf_of()), self.fmt.decode(parts, self.conf_of())
        )
        assert self.fmt.read(typed, self.conf_of())._params.scale.dtype == torch.float8_e4m3fn

    def test_our_layout_runs_as_kitchens(self) -> None:
        """Where comfy-kitchen has no such layout: the same weights, the same INT8 products."""
        parts, x = self.encode(weights("random")), torch.randn(5, 256)
        ours = self.ours(parts)
        assert torch.equal(ours.dequantize(), self.decoded_by_kitchen(parts))
        bias = torch.randn(256)
        expected = w4a8_int8_linear(
            x, *(parts[name] for name in NAMES[:3]), parts.get("weight_codebook"),
            bias=bias, convrot_groupsize=self.GROUP, out_dtype=torch.float32,
        )  # fmt: skip
        for inference in (True, False):
            with torch.inference_mode(inference), torch.no_grad():
                found = torch.nn.functional.linear(x, ours, bias)
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        assert snr(expected - bias, x @ ours.t()) > 60

    def ours(self, parts: dict[str, Tensor]) -> QuantizedTensor:
        layout = register_grouped_layout()
        params = get_layout_class(layout).Params(
            **self.fmt.layout_params(parts, self.conf_of()),
            orig_dtype=torch.float32, orig_shape=(256, 256),
        )  # fmt: skip
        return QuantizedTensor(parts["weight"], layout, params)

    def test_our_layout_rounds_again_to_the_same_storage(self) -> None:
        """What a LoRA does; with a seed, rounded up or down at random."""
        q = self.ours(self.encode(weights("random")))
        before = {name: (t.dtype, t.shape) for name, t in q.state_dict("weight").items()}
        changed = q.dequantize() + 0.01
        for seed in (0, 7):
            again = q.requantize_from_float(
                changed, scale="recalculate", stochastic_rounding=seed, inplace_ops=True
            )
            after = {name: (t.dtype, t.shape) for name, t in again.state_dict("weight").items()}
            assert after == before
            assert snr(q.dequantize() + 0.01, again.dequantize()) >= self.MIN_SNR - 5

    def test_our_layout_moves_and_turns(self) -> None:
        q = self.ours(self.encode(weights("random")))
        assert torch.equal(q.t().dequantize(), q.dequantize().t())
        assert q.to(torch.bfloat16).dequantize().dtype == torch.bfloat16
        assert torch.equal(q.clone().dequantize(), q.dequantize())

    def test_files_are_decoded_before_they_are_quantized_again(self, tmp_path: Path) -> None:
        source, small, again = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
        save_file({"fc.weight": weights("random", 256, 512)}, source)
        first = Recipe(format=self.FORMAT, rounding="nearest", preset=None, **self.OPTIONS)
        quantize_file(source, small, first)
        report = quantize_file(small, again, Recipe(format="int8_tensorwise", preset=None))
        assert report.quantized == 1
        before, after = (load_file(f, dtype=torch.float32)["fc.weight"] for f in (small, again))
        assert after._layout_cls != before._layout_cls
        assert snr(before.dequantize(), after.dequantize()) > 40

    def test_group_must_divide(self) -> None:
        parts = self.encode(weights("random", 64, 192))
        with pytest.raises(FormatError, match="256 does not divide the 192 inputs"):
            self.fmt.decode(parts, self.conf_of(256))


class TestW4A8(GroupedContract):
    MIN_SNR = 20.0
    BITS = 4

    def test_even_columns_are_low_nibbles(self) -> None:
        codes = torch.tensor([[3, 12]], dtype=torch.uint8)
        assert self.fmt.pack_codes(codes, self.spec()).view(torch.uint8).item() == 0xC3

    def test_codes_without_a_codebook_are_read(self) -> None:
        parts = self.theirs(weights("random"), codebook=False)
        assert "weight_codebook" not in parts
        found = self.fmt.decode(parts, self.conf_of())
        assert torch.equal(found, self.decoded_by_kitchen(parts))
        torch.testing.assert_close(self.ours(parts).dequantize(), found, rtol=0, atol=0)

    @pytest.mark.parametrize("rounding", ["nearest", "learned"])
    def test_a_layers_own_codebook_is_stored(self, rounding: str, tmp_path: Path) -> None:
        """Row by row and whole layers alike; many rows, so that a sample of them decides."""
        w = weights("random", 4096 if rounding == "nearest" else 256, 256)
        w = w.sign() * w.abs() ** 3
        source, made = tmp_path / "source.safetensors", tmp_path / "made.safetensors"
        save_file({"fc.weight": rotate(w, 256)}, source)
        settings = {"learned": {"iterations": 20}} if rounding == "learned" else {}
        recipe = Recipe(format=self.FORMAT, rounding=rounding, preset=None, **settings)
        quantize_file(source, made, recipe)
        with safe_open(made, "pt") as file:
            parts = {k.removeprefix("fc."): file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        assert not torch.allclose(parts["weight_codebook"], torch.tensor(self.fmt.grid.values))
        found = self.fmt.decode(parts, self.conf_of())
        plain = self.fmt.decode(self.encode(rotate(w, 256)), self.conf_of())
        assert snr(rotate(w, 256), found) > snr(rotate(w, 256), plain) + 0.3

    def test_a_correction_is_read_and_run(self) -> None:
        """ComfyUI's loader overlooks it; comfy-kitchen's layout applies it."""
        parts = self.theirs(weights("random") + 0.5, symmetric=False)
        expected = self.decoded_by_kitchen(parts)
        found = self.fmt.decode(parts, self.conf_of())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for running in (self.ours(parts), self.fmt.read(parts, self.conf_of(), None, torch.float)):
            torch.testing.assert_close(running.dequantize(), found, rtol=1e-5, atol=1e-5)
            x = torch.randn(3, 256)
            product = torch.nn.functional.linear(x, running)
            assert snr(x @ found.t(), product) > 60

    def test_other_groups_are_read(self) -> None:
        parts = self.theirs(weights("random"), group_size=32)
        conf = {**self.conf_of(), "group_size": 32}
        shapes = {name: tuple(t.shape) for name, t in parts.items()}
        assert identify(conf, shapes, torch.int8, "layer").id == self.FORMAT
        expected = dequantize_w4a8_int8_weight(
            *(parts[name] for name in NAMES[:3]), parts["weight_codebook"], group_size=32,
            output_dtype=torch.float32,
        )  # fmt: skip
        assert torch.equal(self.fmt.decode(parts, conf), expected)


class TestW4A8Group64(GroupedContract):
    OPTIONS: ClassVar[dict[str, Any]] = {"convrot": 64}
    MIN_SNR = 20.0
    BITS = 4
    GROUP = 64


class TestW6A8(GroupedContract):
    OPTIONS: ClassVar[dict[str, Any]] = {"variant": "w6a8"}
    MIN_SNR = 30.0
    BITS = 6

    def test_the_width_tells(self) -> None:
        parts = self.encode(weights("random"))
        shapes = {name: tuple(t.shape) for name, t in parts.items()}
        assert shapes["weight"] == (256, 192)
        assert self.fmt.variant_of(shapes, self.conf_of()) == "w6a8"
        assert identify(self.conf_of(), shapes, torch.int8, "layer").id == self.FORMAT
        with pytest.raises(FormatError, match="do not fit it"):
            identify(self.conf_of(), {**shapes, "weight": (256, 160)}, torch.int8, "layer")

    def test_no_code_is_below_minus_31(self) -> None:
        codes, _ = nearest(weights("outliers"), self.fmt.grid_for(self.spec()),
                           self.fmt.geometry(self.spec()))  # fmt: skip
        assert int(codes.min()) == -31

    def test_decoding_does_not_mistake_bytes_for_bits(self) -> None:
        """Groups of 48 codes are 24 bytes at 4 bits, as groups of 32 are at 6."""
        draw = torch.Generator().manual_seed(0)
        codes = torch.randint(0, 16, (2, 96), generator=draw, dtype=torch.uint8)
        found = decode_grouped(pack_grouped(codes, 4), torch.ones(2, 2), None, 48)
        assert torch.equal(found, codes.to(torch.int8) - 8)
