"""What was saved loads as what it was, bit for bit, in ComfyUI's output folder only."""

from __future__ import annotations

import json

import comfy.sd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from roundsmith.bridge import loading, saving
from roundsmith.bridge.paths import next_output_path
from roundsmith.bridge.quantizing import quantize_clip, quantize_model
from roundsmith.converters import Recipe

from .support import CASES, case_id, load_ours, load_stock, sample, with_lora


def nearest(format):
    """A recipe that needs no statistics: what is saved matters here, not how it was rounded."""
    return Recipe(format=format, rounding="nearest")


def save(model, name):
    path = next_output_path(f"tests/{name}")
    with torch.inference_mode():
        saving.write(path, saving.model_tensors(model), saving.recipe_metadata(model))
    return path


def raw(tensors):
    """Tensors as dtype, shape and bytes, so that FP8 ones can be compared."""
    return {n: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8)) for n, t in tensors.items()}


@pytest.mark.parametrize(("format", "options"), CASES, ids=case_id)
def test_a_loaded_model_is_saved_bit_for_bit(quantized, format, options):
    """Whether ComfyUI loaded the layers or we did."""
    original = quantized(format, **options)
    model = load_ours(original)
    before, after = load_file(original), load_file(save(model, format))
    before = {name.replace("_norm.scale", "_norm.weight"): t for name, t in before.items()}
    for name in [n for n in before if n.endswith("comfy_quant")]:
        left, right = (json.loads(bytes(t.pop(name).tolist())) for t in (before, after))
        assert left.items() <= right.items() or right.items() <= left.items(), name
    for name, tensor in before.items():
        if tensor.dtype is torch.bfloat16 and after[name].dtype is torch.float32:
            before[name] = tensor.float()  # ComfyUI computes in float32 on a CPU
    expected, got = raw(before), raw(after)
    assert expected.keys() == got.keys()
    for name in expected:
        assert expected[name][:2] == got[name][:2], name
        assert torch.equal(expected[name][2], got[name][2]), name


def test_graph_to_file_and_back(demo):
    with torch.inference_mode():
        model, _ = quantize_model(load_stock(demo), nearest("int8_blockwise"))
    path = save(model, "graph")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["roundsmith_recipe"])["format"] == "int8_blockwise"
    layers = json.loads(metadata["_quantization_metadata"])["layers"]
    assert layers["single_blocks.0.linear1"] == {"format": "int8_blockwise", "group_size": 128}
    assert torch.equal(sample(model), sample(load_ours(path)))


@pytest.mark.parametrize("loaded", [False, True], ids=["not-loaded", "loaded"])
def test_a_lora_is_saved_as_it_runs(quantized, loaded):
    """Baked once, with the rounding ComfyUI uses, whether or not the weights hold it already."""
    model = with_lora(load_ours(quantized("float8_e4m3fn_rowwise")))
    expected = sample(model)
    if not loaded:
        with torch.inference_mode():
            model.detach()
    path = save(model, "lora")
    assert torch.equal(sample(load_ours(path)), expected)


def test_one_patched_layer_is_held_at_a_time(quantized, monkeypatch):
    """Each is computed once, when its turn comes, and let go before the next."""
    model = with_lora(load_ours(quantized("float8_e4m3fn_rowwise")))
    readers, held = [], []

    class Watched(saving._LayerReader):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            readers.append(self)

        def read(self, suffix):
            tensor = super().read(suffix)
            held.append(sum(bool(reader._tensors) for reader in readers))
            return tensor

    computed = []
    as_loaded = saving.patched_as_loaded
    monkeypatch.setattr(saving, "_LayerReader", Watched)

    def counted(patcher, key):
        computed.append(key)
        return as_loaded(patcher, key)

    monkeypatch.setattr(saving, "patched_as_loaded", counted)
    save(model, "held")
    assert readers and max(held) == 1 and held[-1] == 0
    assert len(computed) == len(set(computed))


def test_an_unquantized_model_is_saved(demo, reference):
    assert torch.equal(sample(load_stock(save(load_stock(demo), "plain"))), reference)


@pytest.fixture(scope="module")
def clip(encoder):
    with torch.inference_mode():
        return quantize_clip(comfy.sd.load_clip([str(encoder)]), nearest("int8_lodewise"))[0]


def encode(clip):
    with torch.inference_mode():
        return clip.encode_from_tokens(clip.tokenize("a handwritten three"))


def test_a_text_encoder(clip):
    expected = encode(clip)
    with torch.inference_mode():
        files = saving.clip_tensors(clip)
        path = next_output_path("tests/clip")
        saving.write(path, files["clip_l"], {})
        again = loading.load_clip([str(path)], "stable_diffusion")
    assert list(files) == ["clip_l"]
    assert torch.equal(encode(again), expected)


def test_a_checkpoint(demo, clip):
    """Model and text encoder in one file, each in a format of its own."""
    with torch.inference_mode():
        model, _ = quantize_model(load_stock(demo), nearest("mxfp8"))
        expected = sample(model)
        path = next_output_path("tests/checkpoint")
        saving.write(path, saving.checkpoint_tensors(model, clip, None), {})
        loaded, text, _ = loading.load_checkpoint(str(path))
    assert torch.equal(sample(loaded), expected)
    networks = [c.cond_stage_model.clip_l.transformer for c in (clip, text)]  # Flux wants T5 too
    left, right = (raw(network.state_dict()) for network in networks)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name][2], right[name][2]) for name in left)
