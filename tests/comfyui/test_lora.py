"""LoRAs on quantized models: in every load mode, and the scale geometry survives.

A CPU has no dynamic VRAM. What ComfyUI does in that mode to a layer with a LoRA (gather its tensors
into a buffer, patch, quantize again, write back in place) is called here directly.
"""

from __future__ import annotations

import comfy.memory_management as memory
import comfy.model_management as mm
import comfy.ops
import pytest
import torch
from comfy.model_patcher import LowVramPatch
from comfy.quant_ops import QuantizedTensor

from .support import CASES, case_id, load_ours, load_stock, sample, snr, with_lora

LAYER = "diffusion_model.double_blocks.0.img_attn.qkv"
LEAST = {
    **{"nvfp4": 14.0, "float8_e5m2": 18.0, "bnb_nf4": 15.0, "bnb_fp4": 13.0, "bnb_af4": 15.0},
    **{"convrot_w4a4": 6.0, "asym_w4a8_int8": 14.0},
}
"""Re-rounding is stochastic, which costs up to 6 dB."""


@pytest.fixture(scope="module")
def expected(demo):
    """The unquantized model with the LoRA."""
    return sample(with_lora(load_stock(demo)))


def geometry(weight: QuantizedTensor) -> dict[str, object]:
    """What a second rounding must not change."""
    tensors = {name: (t.dtype, tuple(t.shape)) for name, t in weight.state_dict("weight").items()}
    return {**tensors, "layout": weight._layout_cls, "dtype": weight.dtype, "shape": weight.shape}


@pytest.mark.parametrize(("format", "options"), CASES, ids=case_id)
def test_full_load(quantized, expected, format, options):
    """Weights are patched and rounded again in place, and restored when the LoRA goes."""
    model = load_ours(quantized(format, **options))
    plain = sample(model)
    layer = model.model.get_submodule(LAYER)
    before, codes = geometry(layer.weight), layer.weight._qdata.view(torch.uint8).clone()
    patched = with_lora(model)
    latent = sample(patched)
    after = model.model.get_submodule(LAYER).weight
    assert geometry(after) == before
    assert not torch.equal(after._qdata.view(torch.uint8), codes)
    assert snr(expected, latent) > LEAST.get(format, 24.0)
    assert torch.equal(sample(model), plain), "without the LoRA the file's own codes are back"


@pytest.mark.parametrize("format", ["int8_lodewise", "float8_e4m3fn_block3d", "mxfp8"])
def test_low_vram(quantized, expected, format):
    """Weights stay as they are; each layer decodes and patches as it runs."""
    model = with_lora(load_ours(quantized(format)))
    codes = model.model.get_submodule(LAYER).weight._qdata.view(torch.uint8).clone()
    with torch.inference_mode():
        mm.unload_all_models()
        model.patch_model(load_weights=False)
        model.load(torch.device("cpu"), lowvram_model_memory=1)
        layer = model.model.get_submodule(LAYER)
        assert layer.weight_function, "the layer was not loaded in low-VRAM mode"
        x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
        low = layer(x)
        weight = layer.weight_function[0](layer.weight.to(torch.float32).dequantize())
        assert torch.allclose(low, torch.nn.functional.linear(x, weight, layer.bias), atol=1e-4)
        assert torch.equal(layer.weight._qdata.view(torch.uint8), codes)
        model.detach()
    assert snr(expected, sample(model)) > 24


@pytest.mark.parametrize(("format", "options"), CASES, ids=case_id)
def test_dynamic(quantized, format, options):
    """Gather, patch, re-quantize into the buffer: what a layer goes through under dynamic VRAM."""
    model = with_lora(load_ours(quantized(format, **options)))
    layer = model.model.get_submodule(LAYER)
    with torch.inference_mode():
        tensors = [layer.weight, layer.bias]
        buffer = torch.zeros(memory.vram_aligned_size(tensors), dtype=torch.uint8)
        mm.cast_to_gathered(tensors, buffer)
        layer.seed_key = LAYER
        layer.weight_lowvram_function = LowVramPatch(f"{LAYER}.weight", model.patches)
        layer._prefetch = {
            "resident": False,
            "signature": 1,
            "xfer_dest": buffer,
            "cast_dest": None,
            "cast_geometry": memory.tensors_to_geometries(tensors),
            "needs_cast": False,
        }
        weight, _ = comfy.ops.resolve_cast_module_with_vbar(
            layer, layer.weight.dtype, torch.device("cpu"), torch.float32, torch.float32, True
        )
        wanted = layer.weight_lowvram_function(layer.weight.to(torch.float32).dequantize())
        assert geometry(weight) == geometry(layer.weight)
        assert snr(wanted, weight.to(torch.float32).dequantize()) > LEAST.get(format, 22.0)
        resident = layer._v_weight
        assert torch.equal(resident.dequantize().float(), weight.dequantize().float())
        assert resident._qdata.data_ptr() == buffer.data_ptr(), "patched in place in the buffer"


def test_a_lora_on_a_model_quantized_in_the_graph(demo, expected):
    from roundsmith.bridge.quantizing import quantize_model
    from roundsmith.converters import Recipe

    with torch.inference_mode():
        recipe = Recipe(format="float8_e4m3fn_rowwise", rounding="nearest")
        model, _ = quantize_model(load_stock(demo), recipe)
    assert snr(expected, sample(with_lora(model))) > 24
