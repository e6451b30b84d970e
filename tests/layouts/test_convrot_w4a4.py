import pytest
import torch
from comfy_kitchen.backends.eager.convrot_w4a4 import (
    dequantize_convrot_w4a4_weight,
    quantize_convrot_w4a4_weight,
)
from torch import Tensor

from roundsmith.errors import FormatError
from roundsmith.layouts import Spec, identify

from ..contract import FormatContract, weights


class W4A4Contract(FormatContract):
    FORMAT = "convrot_w4a4"
    MIN_SNR = 17.0
    ACTIVATION_SNR = 15.0

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor]:
        codes, scale = quantize_convrot_w4a4_weight(w, spec.convrot)
        return {"weight": codes, "weight_scale": scale}


class TestW4A4(W4A4Contract):
    def test_the_even_column_is_the_low_nibble(self) -> None:
        codes = torch.tensor([[-7, 2]], dtype=torch.int8)
        packed = self.fmt.pack_codes(codes, self.spec())
        assert packed.dtype == torch.int8
        assert packed.item() == 0x29
        assert torch.equal(self.fmt.unpack_codes({"weight": packed}, {}), codes)

    def test_kitchen_decodes_our_files_to_the_same_weights(self) -> None:
        for kind in self.kinds():
            w = weights(kind)
            parts = self.encode(w)
            theirs = dequantize_convrot_w4a4_weight(parts["weight"], parts["weight_scale"], 256)
            assert torch.equal(theirs, self.fmt.decode(parts, {})), kind

    def test_every_stored_nibble_decodes_as_kitchens(self) -> None:
        """−8 too, which no encoder writes."""
        stored = torch.arange(-128, 128, dtype=torch.int8).view(2, 128)
        scale = torch.tensor([0.5, 2.0])
        theirs = dequantize_convrot_w4a4_weight(stored, scale, 256)
        assert torch.equal(self.fmt.decode({"weight": stored, "weight_scale": scale}, {}), theirs)

    def test_column_scales_are_mended(self) -> None:
        parts = self.encode(weights("random"))
        column = {**parts, "weight_scale": parts["weight_scale"][:, None]}
        assert torch.equal(self.fmt.decode(column, {}), self.fmt.decode(parts, {}))

    def test_the_group_is_the_largest_that_divides(self) -> None:
        for features, group in ((1024, 256), (192, 64), (384, 64), (1536, 256)):
            for asked in (None, "auto"):
                bound = self.fmt.bind(convrot=asked, features=features)
                fitted = self.fmt.fit(bound, (8, features)).spec
                assert fitted is not None
                assert fitted.convrot == group
        wide = self.fmt.fit(self.fmt.bind(convrot=1024), (8, 2048)).spec
        assert wide is not None
        assert wide.convrot == 1024

    def test_inputs_that_are_no_multiple_of_64_are_refused(self) -> None:
        fit = self.fmt.fit(self.fmt.bind(), (8, 1000))
        assert fit.spec is None
        assert "multiple of 64" in fit.note

    def test_shapes_do_not_mistake_it_for_int8(self) -> None:
        shapes = {"weight": (128, 128), "weight_scale": (128,)}
        assert identify({"format": self.FORMAT}, shapes, torch.int8, "x").id == self.FORMAT
        for label in ("int8_tensorwise", "int8_blockwise"):
            assert identify({"format": label}, shapes, torch.int8, "x").id == "int8_tensorwise"

    def test_an_unknown_product_is_refused(self) -> None:
        parts = self.encode(weights("random"))
        with pytest.raises(FormatError, match="'fp8' is neither int4 nor int8"):
            self.fmt.read(parts, {"linear_dtype": "fp8"})


class TestW4A4Group64(W4A4Contract):
    OPTIONS = {"convrot": 64}  # noqa: RUF012


class TestW4A8(W4A4Contract):
    """The same file, but for the product it asks for."""

    OPTIONS = {"variant": "w4a8"}  # noqa: RUF012

    def test_json_says_which_product(self) -> None:
        assert self.fmt.conf(self.spec(), (256, 256))["linear_dtype"] == "int8"
        assert self.quantized(weights("random"))._params.linear_dtype == "int8"
