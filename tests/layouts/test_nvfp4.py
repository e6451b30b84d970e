import torch
from comfy_kitchen.backends.eager.quantization import quantize_nvfp4
from torch import Tensor

from roundsmith.layouts import Spec

from ..contract import FormatContract, bits, weights


class TestNVFP4(FormatContract):
    FORMAT = "nvfp4"
    MIN_SNR = 20.0
    kitchen_divides_zero_safely = False  # a tensor scale of zero: 0/0

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor]:
        tensor_scale = w.abs().amax() / (448.0 * 6.0)
        codes, scale = quantize_nvfp4(w, tensor_scale, pad_16x=True)
        return {"weight": codes, "weight_scale": scale, "weight_scale_2": tensor_scale}

    def test_padded_shapes_are_comfy_kitchens_too(self) -> None:
        w = weights("random", 130, 200)
        for suffix, tensor in self.kitchen(w, self.spec((130, 200))).items():
            found = self.encode(w)[suffix]
            assert torch.equal(bits(found), bits(tensor)), suffix

    def test_the_even_column_is_the_high_nibble(self) -> None:
        codes = torch.tensor([[7, 2]], dtype=torch.uint8)  # 6 and 1
        assert self.fmt.pack_codes(codes, self.spec()).item() == 0x72

    def test_old_files_are_mended(self) -> None:
        """Block scales typed uint8, a tensor scale of shape [1]."""
        parts = self.encode(weights("random"))
        old = {
            "weight": parts["weight"],
            "weight_scale": parts["weight_scale"].view(torch.uint8),
            "weight_scale_2": parts["weight_scale_2"].reshape(1),
        }
        assert torch.equal(self.fmt.decode(old, {}), self.fmt.decode(parts, {}))

    def test_smoothed_columns_are_scaled_back(self) -> None:
        parts = self.encode(weights("random"))
        smoothing = torch.linspace(0.5, 2, 256)
        expected = self.fmt.decode(parts, {}) * smoothing
        assert torch.equal(self.fmt.decode({**parts, "pre_quant_scale": smoothing}, {}), expected)

    def test_a_layer_of_zeros_with_nan_scales_reads_as_zeros(self) -> None:
        parts = self.encode(weights("random"))
        parts["weight_scale"] = torch.full_like(parts["weight_scale"].float(), torch.nan)
        parts["weight_scale"] = parts["weight_scale"].to(torch.float8_e4m3fn)
        parts["weight_scale_2"] = torch.zeros(())
        assert not self.fmt.decode(parts, {}).any()
