"""Files of bitsandbytes, through a real ComfyUI: recognised, loaded, sampled, saved.

That our bitsandbytes form is bitsandbytes' own to the last bit is tested in ``layouts``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from roundsmith.bridge import loading, saving
from roundsmith.bridge.paths import next_output_path
from roundsmith.bridge.quantizing import quantize_model
from roundsmith.converters import Recipe, quantize_file
from roundsmith.layouts import get_format

from .support import lora, sample, snr, with_lora

LAYER = "single_blocks.0.linear1"


@pytest.fixture(scope="module")
def foreign(demo: Path) -> Path:
    """The demo with every linear layer in NF4, those ComfyUI knows the model by included."""
    path = demo.with_name("foreign-nf4.safetensors")
    recipe = Recipe(format="bnb_nf4", form="bitsandbytes", rounding="nearest", preset=None)
    assert quantize_file(demo, path, recipe, overwrite=True).quantized
    tensors = load_file(path)
    assert tensors["img_in.weight"].shape[1] == 1, "packed: its shape tells nothing"
    assert not any(name.endswith("comfy_quant") for name in tensors)
    save_file(tensors, path)  # without metadata, as other tools write it
    return path


def load(path: Path):
    with torch.inference_mode():
        return loading.load_diffusion_model(str(path))


def written(model, name: str) -> Path:
    path = next_output_path(f"tests/{name}")
    with torch.inference_mode():
        saving.write(path, saving.model_tensors(model), saving.recipe_metadata(model))
    return path


def by_hand(tensors, layer: str) -> torch.Tensor:
    """A layer decoded one weight after the other: the even one is in the high nibble."""
    packed = tensors[f"{layer}.weight"].flatten()
    state = json.loads(bytes(tensors[f"{layer}.weight.quant_state.bitsandbytes__nf4"].tolist()))
    codes = [nibble for byte in packed.tolist() for nibble in (byte >> 4, byte & 15)]
    values = tensors[f"{layer}.weight.quant_map"][torch.tensor(codes)]
    scales = tensors[f"{layer}.weight.absmax"].repeat_interleave(state["blocksize"])
    return (values * scales).view(state["shape"])


def test_packed_bytes_never_reach_the_product(foreign):
    tensors, model = load_file(foreign), load(foreign)
    for name in (LAYER, "img_in", "double_blocks.0.txt_mlp.2"):
        layer, expected = model.model.diffusion_model.get_submodule(name), by_hand(tensors, name)
        assert isinstance(layer.weight, QuantizedTensor)
        assert torch.equal(layer.weight.dequantize().float(), expected.to(layer.weight.dtype))
        x = torch.randn(2, 5, expected.shape[1])
        for inference in (False, True):
            with torch.inference_mode(inference), torch.no_grad():
                found = layer(x)
            wanted = torch.nn.functional.linear(x, expected, layer.bias)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_model_is_recognised_and_samples(foreign, reference):
    assert snr(reference, sample(load(foreign))) > 12


def test_scales_that_are_quantized_themselves(foreign, demo):
    """Double quantization: 8-bit scales of a table, under scales of their own by 256."""
    tensors = load_file(foreign)
    key = f"{LAYER}.weight"
    absmax = tensors.pop(f"{key}.absmax")
    offset = float(absmax.mean())
    table = torch.linspace(-1, 1, 256)
    padded = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
    outer = padded.abs().amax(1)
    codes = ((padded / outer[:, None] + 1) * 127.5).round().to(torch.uint8).flatten()
    state = json.loads(bytes(tensors[f"{key}.quant_state.bitsandbytes__nf4"].tolist()))
    state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    tensors |= {
        f"{key}.absmax": codes[: len(absmax)].clone(),
        f"{key}.nested_absmax": outer,
        f"{key}.nested_quant_map": table,
        f"{key}.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }
    path = demo.with_name("nested-nf4.safetensors")
    save_file(tensors, path)
    layers = [m.model.diffusion_model.get_submodule(LAYER) for m in (load(foreign), load(path))]
    first, second = (layer.weight.dequantize().float() for layer in layers)
    assert 35 < snr(first, second) < 80


def test_saved_again_it_is_the_same_file(foreign):
    path = written(load(foreign), "foreign")
    before, after = load_file(foreign), load_file(path)
    assert not any(name.endswith("comfy_quant") for name in after)
    for name in [n for n in before if n.startswith((f"{LAYER}.", "img_in."))]:
        if name.endswith(".bias"):
            continue
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    assert torch.equal(sample(load(path)), sample(load(foreign)))


def test_quantized_in_the_graph_it_is_saved_in_the_form_asked_for(demo):
    recipe = Recipe(format="bnb_nf4", form="bitsandbytes", rounding="nearest")
    with torch.inference_mode():
        model, _ = quantize_model(load(demo), recipe)
    path = written(model, "graph-nf4")
    names = set(load_file(path))
    assert f"{LAYER}.weight.quant_state.bitsandbytes__nf4" in names
    assert f"{LAYER}.comfy_quant" not in names
    with safe_open(path, "pt") as file:
        assert "_quantization_metadata" not in file.metadata()
    assert torch.equal(sample(model), sample(load(path)))


def test_a_lora_keeps_table_and_groups(foreign):
    model = load(foreign)
    plain = sample(model)
    patched = with_lora(model, lora())
    assert snr(plain, sample(patched)) < 30
    weight = patched.model.get_submodule(f"diffusion_model.{LAYER}").weight
    assert weight._params.group_size == 64
    assert torch.equal(weight._params.codebook, get_format("bnb_nf4").grid.decode(torch.arange(16)))
    assert torch.equal(sample(model), plain)
