import torch
from comfy_kitchen.backends.eager.quantization import quantize_mxfp8
from torch import Tensor

from roundsmith.layouts import Spec

from ..contract import FormatContract, bits, weights


class TestMXFP8(FormatContract):
    FORMAT = "mxfp8"
    MIN_SNR = 31.0

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor]:
        codes, scale = quantize_mxfp8(w, pad_32x=True)
        return {"weight": codes, "weight_scale": scale.view(torch.uint8)}

    def test_padded_shapes_are_comfy_kitchens_too(self) -> None:
        w = weights("random", 130, 200)
        for suffix, tensor in self.kitchen(w, self.spec((130, 200))).items():
            found = self.encode(w)[suffix]
            assert torch.equal(bits(found), bits(tensor)), suffix
