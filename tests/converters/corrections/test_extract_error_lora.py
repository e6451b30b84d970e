"""Error LoRAs between two models: which layers, what is written, what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from roundsmith.checkpoints import Checkpoint
from roundsmith.converters.calibration import Record
from roundsmith.converters.corrections import (
    ErrorLoraOptions,
    bias_correction,
    error_lora_file,
)
from roundsmith.converters.corrections.extract_error_lora import METADATA_KEY
from roundsmith.converters.corrections.layer_correction import correct_layer
from roundsmith.converters.corrections.lora_names import LoraNames
from roundsmith.converters.model import ModelView
from roundsmith.converters.running import run_layer
from roundsmith.converters.source import MemorySource
from roundsmith.errors import (
    Cancelled,
    CheckpointError,
    DestinationExistsError,
    RecipeError,
    RoundsmithError,
)

from .conftest import SHAPES

QKV = "double_blocks.0.img_attn.qkv"


def decoded(path):
    with Checkpoint.open(path) as source:
        view = ModelView(source)
        return {n: view.read_rows(f"{n}.weight", 0, m).float() for n, (m, _) in SHAPES.items()}


@pytest.mark.parametrize(
    ("format", "options"),
    [("nvfp4", {}), ("float8_e4m3fn", {}), ("mxfp8", {}), ("int8_tensorwise", {"convrot": 64})],
)
def test_weights_get_nearer_and_the_report_says_by_how_much(model, format, options):
    quantized = model.quantized(format, **options)
    report = error_lora_file(model.original, quantized, options=ErrorLoraOptions(rank=16))
    lora = load_file(quantized.with_name(f"{format}_lora.safetensors"))
    w, w_hat = decoded(model.original), decoded(quantized)
    assert len(lora) == 2 * len(SHAPES)
    for layer in report.layers:
        a = lora[f"diffusion_model.{layer.name}.lora_A.weight"]
        b = lora[f"diffusion_model.{layer.name}.lora_B.weight"]
        assert a.shape == (16, 64) and b.shape == (SHAPES[layer.name][0], 16)
        assert a.dtype == b.dtype == torch.float32
        error = w[layer.name] - w_hat[layer.name]
        for left, said in ((error, layer.weight_snr), (error - b @ a, layer.weight_snr_after)):
            ratio = w[layer.name].square().sum() / left.square().sum()
            assert said == pytest.approx(10 * float(ratio.log10()), abs=0.01)
        assert layer.weight_snr_after > layer.weight_snr + 1
        assert layer.method == "plain" and layer.reason == "no statistics"
    assert report.gain("output") is None and report.gain("weight") > 1


def test_weighted_is_better_for_the_outputs_than_plain(model):
    quantized = model.quantized("nvfp4")
    options = ErrorLoraOptions(rank=8)
    weighted = error_lora_file(model.original, quantized, model.folder / "w.safetensors", options,
                               model.calibration)  # fmt: skip
    error_lora_file(model.original, quantized, model.folder / "p.safetensors", options)
    w, w_hat = decoded(model.original), decoded(quantized)
    files = {name: load_file(model.folder / f"{name}.safetensors") for name in "wp"}
    for layer in weighted.layers:
        assert layer.method == "weighted"
        x = model.calibration.record(layer.name).tokens.float()
        noise = {}
        for name, lora in files.items():
            prefix = f"diffusion_model.{layer.name}.lora_"
            left = w[layer.name] - w_hat[layer.name]
            left = left - lora[f"{prefix}B.weight"] @ lora[f"{prefix}A.weight"]
            noise[name] = float((x @ left.T).square().sum())
        assert noise["w"] < noise["p"] * 0.7
        assert layer.output_snr_after > layer.output_snr + 1


@pytest.mark.parametrize("corrected", [False, True], ids=["plain bias", "corrected bias"])
def test_outputs_are_scored_as_executed_too(model, corrected):
    """INT8 rounds its inputs: the LoRA takes back the weights' error, not theirs."""
    quantized = model.quantized("int8_tensorwise")
    if corrected:
        tensors = load_file(quantized)
        with safe_open(quantized, "pt") as file:
            metadata = file.metadata()
        for name in SHAPES:
            tensors[f"{name}.bias"] += 0.05
        save_file(tensors, quantized, metadata=metadata)
    report = error_lora_file(
        model.original, quantized, None, ErrorLoraOptions(rank=32), model.calibration
    )
    with Checkpoint.open(model.original) as source, Checkpoint.open(quantized) as made:
        first, second = ModelView(source), ModelView(made)
        for layer in report.layers:
            name = f"{layer.name}.weight"
            x = model.calibration.record(layer.name).split().held[:256]
            biases = [file.read(f"{layer.name}.bias").float() for file in (source, made)]
            exact = x @ first.read_rows(name, 0, first.shape(name)[0]).float().T + biases[0]
            lost = exact - run_layer(second, name, x, biases[1])
            snr = 10 * math.log10((exact - biases[0]).square().sum() / lost.square().sum())
            assert layer.executed_snr == pytest.approx(snr, abs=0.01)
            assert layer.executed_snr < layer.output_snr + 0.1
            assert layer.executed_snr < layer.executed_snr_after < layer.output_snr_after
    assert "executed dB" in report.table() and "as executed here +" in report.summary()
    assert json.loads(report.json())["executed_gain"] == pytest.approx(report.gain("executed"))


def test_tokens_set_aside_decide_whether_it_is_weighted():
    """Statistics of a single direction say nothing of the inputs; the weights' own error does."""
    g = torch.Generator().manual_seed(0)
    w, error = torch.randn(96, 64, generator=g), torch.rand(96, 64, generator=g) - 0.5
    held = torch.randn(64, 64, generator=g).bfloat16()
    lies = torch.outer(*[torch.eye(64)[3]] * 2)
    tokens = {"lies": lies, "truth": held.float().T @ held.float() / 64}
    found = {}
    for name, moment in tokens.items():
        record = Record(64, 1000, 0, 64, held.float().mean(0), held.float().abs().amax(0),
                        torch.zeros(4096, dtype=torch.int64), held, moment, 936)  # fmt: skip
        found[name] = correct_layer(w, w - 0.1 * error, 8, record)
    assert found["lies"].method == "plain" and "set aside" in found["lies"].note
    assert found["truth"].method == "weighted" and found["truth"].note == ""
    for correction in found.values():
        assert correction.outputs[1] > correction.outputs[0]
    assert found["truth"].outputs[1] > found["lies"].outputs[1]


def test_few_tokens_or_broken_statistics_are_not_used(model):
    g = torch.Generator().manual_seed(0)
    w, error = torch.randn(96, 64, generator=g), torch.rand(96, 64, generator=g) - 0.5
    few = torch.randn(63, 64, generator=g).bfloat16()
    for tokens, said in ((few, "only 63 tokens"), (few.repeat(2, 1) * torch.nan, "NaN")):
        record = Record(64, len(tokens), 0, 999, tokens.float().mean(0), tokens.float().amax(0),
                        torch.zeros(4096, dtype=torch.int64), tokens)  # fmt: skip
        found = correct_layer(w, w - 0.1 * error, 8, record)
        assert found.method == "plain" and said in found.note and found.outputs is None


def test_a_corrected_bias_is_taken_into_account(model):
    """The quantized bias holds (W − Ŵ)μ already; the LoRA's own bias patch settles the rest."""
    quantized = model.quantized("nvfp4")
    w, w_hat = decoded(model.original), decoded(quantized)
    tensors = load_file(quantized)
    with safe_open(str(quantized), "pt") as file:
        metadata = file.metadata()
    for layer in SHAPES:
        mean = model.calibration.record(layer).fitted_mean()
        fixed = tensors[f"{layer}.bias"].float()
        fixed += bias_correction(w[layer], w_hat[layer], mean)
        tensors[f"{layer}.bias"] = fixed
    save_file(tensors, model.folder / "b.safetensors", metadata)
    report = error_lora_file(model.original, model.folder / "b.safetensors", None,
                             ErrorLoraOptions(rank=8), model.calibration)  # fmt: skip
    lora = load_file(model.folder / "b_lora.safetensors")
    before = load_file(model.original)
    for layer in report.layers:
        assert layer.bias and layer.output_snr_after > layer.output_snr
        name = f"diffusion_model.{layer.name}"
        left = w[layer.name] - w_hat[layer.name]
        left = left - lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
        bias = tensors[f"{layer.name}.bias"] + lora[f"{name}.diff_b"]
        mean = model.calibration.record(layer.name).fitted_mean()
        wanted = before[f"{layer.name}.bias"].float() + left @ mean
        assert torch.allclose(bias, wanted, atol=1e-4)
    plain = error_lora_file(model.original, model.folder / "b.safetensors", overwrite=True)
    lora = load_file(model.folder / "b_lora.safetensors")
    for layer in plain.layers:
        bias = tensors[f"{layer.name}.bias"] + lora[f"diffusion_model.{layer.name}.diff_b"]
        assert torch.allclose(bias, before[f"{layer.name}.bias"].float(), atol=1e-5)


def test_a_bias_in_another_dtype_is_the_same_bias(model):
    tensors = load_file(model.original)
    wider = {n: t.float() * 1.0001 if "bias" in n else t for n, t in tensors.items()}
    save_file(wider, model.folder / "original32.safetensors")
    report = error_lora_file(model.folder / "original32.safetensors", model.quantized("nvfp4"))
    assert not any(layer.bias for layer in report.layers)


def test_prefixes_of_checkpoints_do_not_matter(model):
    tensors = {f"model.diffusion_model.{n}": t for n, t in load_file(model.original).items()}
    save_file(tensors, model.folder / "checkpoint.safetensors")
    report = error_lora_file(model.folder / "checkpoint.safetensors", model.quantized("nvfp4"),
                             calibration=model.calibration)  # fmt: skip
    assert [x.lora_name for x in report.layers] == [f"diffusion_model.{n}" for n in SHAPES]
    assert all(x.method == "weighted" for x in report.layers)


@pytest.mark.parametrize(
    ("names", "width", "expected"),
    [
        (["double_blocks.{}.img_attn.qkv"], 64, "diffusion_model.double_blocks.0.img_attn.qkv"),
        (["model.diffusion_model.double_blocks.{}.img_attn.qkv"], 64,
         "diffusion_model.double_blocks.0.img_attn.qkv"),
        (["net.blocks.{}.self_attn.q_proj"], 64, "diffusion_model.blocks.0.self_attn.q_proj"),
        (["text_model.encoder.layers.{}.mlp.fc1"], 768,
         "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"),
        (["text_model.encoder.layers.{}.mlp.fc1"], 1280,
         "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1"),
        (["encoder.block.{}.layer.0.SelfAttention.q"], 64,
         "text_encoders.transformer.encoder.block.0.layer.0.SelfAttention.q"),
        (["model.layers.{}.self_attn.q_proj"], 64,
         "text_encoders.transformer.model.layers.0.self_attn.q_proj"),
        (["text_encoders.t5xxl.transformer.encoder.block.{}.layer.1.wi_0",
          "model.diffusion_model.joint_blocks.{}.x_block.mlp.fc1"], 64,
         "text_encoders.t5xxl.transformer.encoder.block.0.layer.1.wi_0"),
        (["conditioner.embedders.0.transformer.text_model.encoder.layers.{}.mlp.fc1",
          "model.diffusion_model.input_blocks.{}.q"], 768,
         "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"),
        (["conditioner.embedders.1.model.transformer.resblocks.{}.mlp.c_fc",
          "model.diffusion_model.input_blocks.{}.q"], 1280, None),
        (["first_stage_model.decoder.{}.q", "model.diffusion_model.input_blocks.{}.q"], 64, None),
    ],
)  # fmt: skip
def test_names_that_comfyui_knows(names, width, expected):
    """Checked against comfy/lora.py; tests/comfyui/test_error_lora.py loads two of the kinds."""
    layers = [name.format(i) for name in names for i in range(9)]
    tensors = {f"{layer}.weight": torch.zeros(2 * width, width) for layer in layers}
    found = LoraNames(ModelView(MemorySource(tensors))).of(names[0].format(0))
    assert found == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "abcdefg"),
        ({"layers": "selected"}, "abd"),
        ({"layers": "selected", "depth": 4}, "abcdeg"),
        ({"layers": "selected", "aspect": 10}, "abdf"),
        ({"depth": 1}, "abdf"),
        ({"depth": 1, "aspect": 2}, "a"),
        ({"aspect": 3}, "abeg"),
        ({"target": "mlp", "depth": 1, "aspect": 1, "layers": "selected"}, "e"),
    ],
)
def test_choice_of_layers(options, expected):
    layers = {
        "a": ("blocks.0.proj", (64, 64)),
        "b": ("blocks.0.gate", (192, 64)),
        "c": ("blocks.3.attn.k", (64, 256)),
        "d": ("final.proj", (64, 210)),
        "e": ("blocks.3.mlp", (180, 64)),
        "f": ("blocks.0.up", (64, 270)),
        "g": ("blocks.1.up", (64, 64)),
    }
    chosen = ErrorLoraOptions(**options)
    found = [k for k, (name, shape) in layers.items() if not chosen.why_not(name, shape)]
    assert "".join(found) == expected


def test_metadata_say_what_it_is(model):
    quantized = model.quantized("nvfp4")
    out = model.folder / "lora.safetensors"
    error_lora_file(model.original, quantized, out, calibration=model.calibration)
    with safe_open(str(out), "pt") as file:
        said = json.loads(file.metadata()[METADATA_KEY])
    assert said["corrects"] == "nvfp4.safetensors" and said["strength"] == 1.0
    assert said["layers"] == said["weighted"] == len(SHAPES)
    assert "bypass" in said["apply"]
    assert said["settings"]["rank"] == 32


def test_lossless_layers_are_left_out(model):
    tensors = load_file(model.original)
    tensors[f"{QKV}.weight"] = torch.zeros(192, 64)
    save_file(tensors, model.original)
    report = error_lora_file(model.original, model.quantized("nvfp4"))
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons[QKV] == "nothing was lost"
    lora = load_file(model.folder / "nvfp4_lora.safetensors")
    assert len(lora) == 2 * (len(SHAPES) - 1) and not any(QKV in name for name in lora)


def test_models_that_do_not_belong_together(model):
    quantized, out = model.quantized("nvfp4"), model.folder / "lora.safetensors"
    other = model.folder / "other.safetensors"
    tensors = load_file(model.original)
    cases = {
        "nothing in common": {n: torch.randn(t.shape) for n, t in tensors.items()},
        r"is \(192, 64\) in": {n: t.repeat(2, 1) if t.ndim == 2 else t for n, t in tensors.items()},
        "has no layer": {f"x.{n}": t for n, t in tensors.items()},
    }
    for said, changed in cases.items():
        save_file(changed, other)
        with pytest.raises(CheckpointError, match=said) as raised:
            error_lora_file(other, quantized, out)
        assert QKV in str(raised.value) and "other.safetensors" in str(raised.value)
    with pytest.raises(CheckpointError, match="original first"):
        error_lora_file(quantized, model.original, out)
    with pytest.raises(RoundsmithError, match="another model"):
        other_statistics = model.calibration.under("double_blocks.")
        error_lora_file(model.original, quantized, out, calibration=other_statistics)
    assert not out.exists()


def test_bad_calls_leave_nothing(model):
    quantized, out = model.quantized("nvfp4"), model.folder / "lora.safetensors"
    before = set(model.folder.iterdir())
    with pytest.raises(Cancelled):
        error_lora_file(model.original, quantized, out, cancel=lambda: True)
    with pytest.raises(CheckpointError, match=r"nothing to correct.*not a target"):
        error_lora_file(model.original, quantized, out, ErrorLoraOptions(target="^none$"))
    with pytest.raises(CheckpointError, match="one of the models"):
        error_lora_file(model.original, quantized, quantized, overwrite=True)
    with pytest.raises(CheckpointError, match="no folder"):
        error_lora_file(model.original, quantized, model.folder / "no" / "lora.safetensors")
    with pytest.raises(RecipeError, match="not usable"):
        error_lora_file(model.original, quantized, out, ErrorLoraOptions(device="quantum"))
    for settings in ({"rank": 0}, {"target": "("}, {"depth": 0}, {"aspect": 0.5}, {"layers": "x"}):
        with pytest.raises(RecipeError):
            ErrorLoraOptions(**settings)
    assert set(model.folder.iterdir()) == before
    out.write_bytes(b"precious")
    with pytest.raises(DestinationExistsError):
        error_lora_file(model.original, quantized, out)
    assert out.read_bytes() == b"precious"


def test_weights_that_are_not_finite_are_named_and_left_out(model):
    quantized = model.quantized("nvfp4")
    tensors = load_file(model.original)
    tensors[f"{QKV}.weight"][0, 0] = torch.nan
    save_file(tensors, model.original)
    report = error_lora_file(model.original, quantized)
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons[QKV] == "the weights or the moment hold NaN or Inf"
    assert len(report.corrected) == len(SHAPES) - 1
