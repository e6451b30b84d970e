"""Error LoRAs through ComfyUI's own loader nodes, on the demo model and its text encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comfy_extras.nodes_lora_debug import LoraLoaderBypass, LoraLoaderBypassModelOnly
from safetensors.torch import load_file, save_file

import nodes
from roundsmith.bridge.loading import load_clip
from roundsmith.checkpoints import Checkpoint
from roundsmith.converters import Recipe, quantize_file
from roundsmith.converters.calibration import capture
from roundsmith.converters.corrections import bias_correction, error_lora_file
from roundsmith.converters.model import ModelView

from .support import load_stock, sample, snr

SEEDS = (1, 2, 3)
CALIBRATED_ON = range(100, 108)


def latents(model):
    return torch.cat([sample(model, seed) for seed in SEEDS])


@pytest.fixture(scope="module")
def expected(demo):
    return latents(load_stock(demo))


@pytest.fixture(scope="module")
def calibration(demo):
    """Statistics of other seeds than those scored."""
    model = load_stock(demo)
    with capture(model.model.diffusion_model) as found:
        for seed in CALIBRATED_ON:
            sample(model, seed)
    return found


@pytest.fixture
def loras(base):
    return base / "models" / "loras"


@torch.inference_mode()
def by_bypass(model, name):
    return LoraLoaderBypassModelOnly().load_lora_model_only(model, name, 1.0)[0]


@torch.inference_mode()
def by_patching(model, name):
    return nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0]


@pytest.mark.parametrize(("format", "least"), [("nvfp4", 6.0), ("float8_e4m3fn", 6.0)])
def test_bypass_corrects_and_patching_does_not(
    demo, quantized, loras, expected, calibration, format, least, caplog
):
    """Seen: nvfp4 32.6 dB, by bypass 40.9, by patching 23; FP8 42.1, 52.1 and 42."""
    file = quantized(format)
    report = error_lora_file(
        demo, file, loras / f"{format}.safetensors", calibration=calibration, overwrite=True
    )
    how = {layer.name: layer.method for layer in report.corrected}
    assert how["double_blocks.0.img_attn.qkv"] == "weighted"
    assert how["double_blocks.0.img_mod.lin"] == "plain", "one token a step"
    model = load_stock(file)
    plain = snr(expected, latents(model))
    corrected = by_bypass(model, f"{format}.safetensors")
    assert not [r for r in caplog.records if "not loaded" in r.message.lower()]
    assert snr(expected, latents(corrected)) > plain + least
    assert snr(expected, latents(by_patching(model, f"{format}.safetensors"))) < plain + 1
    assert abs(snr(expected, latents(model)) - plain) < 1e-6, "the model itself is as it was"


def test_without_statistics(demo, quantized, loras, expected):
    error_lora_file(demo, quantized("nvfp4"), loras / "plain.safetensors", overwrite=True)
    model = load_stock(quantized("nvfp4"))
    corrected = by_bypass(model, "plain.safetensors")
    assert snr(expected, latents(corrected)) > snr(expected, latents(model)) + 0.5


def test_a_corrected_bias_is_not_corrected_twice(
    demo, quantized, loras, expected, calibration, tmp_path
):
    """Both corrections together are at least as good as the LoRA alone."""
    with Checkpoint.open(demo) as a, Checkpoint.open(quantized("nvfp4")) as b:
        before, after = ModelView(a), ModelView(b)
        tensors, metadata = load_file(quantized("nvfp4")), dict(b.metadata)
        for layer in after.stored:
            w, w_hat = (
                view.read_rows(f"{layer}.weight", 0, view.shape(f"{layer}.weight")[0]).float()
                for view in (before, after)
            )
            mean = calibration.record(layer).mean
            bias = tensors[f"{layer}.bias"]
            fixed = bias.float() + bias_correction(w, w_hat, mean)
            tensors[f"{layer}.bias"] = fixed.to(bias.dtype)
    corrected = tmp_path / "biases.safetensors"
    save_file(tensors, corrected, metadata)
    scores = {}
    for name, file in (("alone", quantized("nvfp4")), ("both", corrected)):
        report = error_lora_file(
            demo, file, loras / f"{name}.safetensors", calibration=calibration, overwrite=True
        )
        assert all(x.bias == (name == "both") for x in report.corrected)
        scores[name] = snr(expected, latents(by_bypass(load_stock(file), f"{name}.safetensors")))
    assert scores["both"] > scores["alone"] - 0.5


def test_a_text_encoder(encoder, loras):
    """Its keys are known to the loader, and the encoding gets nearer."""
    file = encoder.with_name("error-lora-clip.safetensors")
    quantize_file(encoder, file, Recipe(format="nvfp4"), overwrite=True)
    report = error_lora_file(encoder, file, loras / "clip.safetensors", overwrite=True)
    assert len(report.corrected) == 73
    with torch.inference_mode():
        original, clip = (load_clip([str(p)], "stable_diffusion") for p in (encoder, file))
        corrected = LoraLoaderBypass().load_lora(None, clip, "clip.safetensors", 0.0, 1.0)[1]
        tokens = original.tokenize("a handwritten three")
        wanted = original.encode_from_tokens(tokens)
        plain = snr(wanted, clip.encode_from_tokens(tokens))
        better = snr(wanted, corrected.encode_from_tokens(tokens))
    assert len(corrected.patcher.injections["bypass_lora"]) > 0
    assert better > plain + 0.3


def test_the_node_writes_what_the_bypass_loader_reads(demo, quantized, loras, expected):
    """From two loaded models; both stay as they were."""
    from roundsmith.nodes.extract_error_lora import ExtractErrorLora

    original, made = load_stock(demo), load_stock(quantized("nvfp4"))
    plain = snr(expected, latents(made))
    with torch.inference_mode():
        path, table = ExtractErrorLora.execute(original, made, 32, "loras/corrected").args
    assert "single_blocks.0.linear1" in table
    name = "from-node.safetensors"
    (loras / name).write_bytes(Path(path).read_bytes())
    assert snr(expected, latents(by_bypass(made, name))) > plain + 0.5
    assert abs(snr(expected, latents(made)) - plain) < 1e-6
