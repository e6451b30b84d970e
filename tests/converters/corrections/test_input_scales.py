"""Input scales read from other files; names of layers; estimates."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from roundsmith.converters.corrections import input_scale, read_input_scales
from roundsmith.converters.corrections.estimates import (
    lora_inputs,
    random_inputs,
    range_of,
    read_directions,
)
from roundsmith.converters.corrections.names import LayerNames
from roundsmith.errors import CheckpointError

QKV = "double_blocks.0.img_attn.qkv"


def test_json(tmp_path):
    path = tmp_path / "scales.json"
    path.write_text(json.dumps({QKV: 0.015, "b.input_scale": 1, "c": 2.5e-5}))
    assert read_input_scales(path) == {QKV: 0.015, "b": 1.0, "c": 2.5e-5}


def test_safetensors(tmp_path):
    path = tmp_path / "other.safetensors"
    tensors = {
        f"model.diffusion_model.{QKV}.input_scale": torch.tensor(0.25),
        "b.scale_input": torch.tensor([0.5], dtype=torch.bfloat16),
        "b.weight_scale": torch.tensor(7.0),
        "b.weight": torch.zeros(4, 4),
    }
    save_file(tensors, path)
    assert read_input_scales(path) == {f"model.diffusion_model.{QKV}": 0.25, "b": 0.5}


BAD = ("-0.5", "0", "NaN", "Infinity", '"0.5"', "true", "null", "[1]", "1e30", "1e-30")


@pytest.mark.parametrize("value", [*BAD, "1" + "0" * 400])
def test_bad_values_name_file_and_key(tmp_path, value):
    path = tmp_path / "scales.json"
    path.write_text(f'{{"good": 0.5, "{QKV}": {value}}}')
    with pytest.raises(CheckpointError) as raised:
        read_input_scales(path)
    assert "scales.json" in str(raised.value)
    assert QKV in str(raised.value) or value in ("NaN", "Infinity")  # not JSON at all


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf, 1e20])
def test_bad_tensors_name_file_and_key(tmp_path, value):
    path = tmp_path / "other.safetensors"
    save_file({f"{QKV}.input_scale": torch.tensor(value)}, path)
    with pytest.raises(CheckpointError, match=rf"other\.safetensors: '{QKV}\.input_scale'"):
        read_input_scales(path)


NO_SCALARS = (torch.ones(3), torch.ones((), dtype=torch.int32), torch.ones(0))


@pytest.mark.parametrize("tensor", NO_SCALARS)
def test_tensors_that_are_no_scalars(tmp_path, tensor):
    path = tmp_path / "other.safetensors"
    save_file({f"{QKV}.input_scale": tensor}, path)
    with pytest.raises(CheckpointError, match="one floating number"):
        read_input_scales(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [("[0.5]", "object"), ("{}", "holds no input scales"), ("{", "not valid JSON"),
     ('{"a": 1, "a": 2}', "twice"), ('{"a": 1, "a.input_scale": 2}', "twice")],
)  # fmt: skip
def test_bad_json(tmp_path, text, said):
    path = tmp_path / "scales.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=said) as raised:
        read_input_scales(path)
    assert "scales.json" in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    for name in ("none.json", "none.safetensors"):
        with pytest.raises(CheckpointError, match="none"):
            read_input_scales(tmp_path / name)


def test_spellings_of_a_layer():
    names = LayerNames([QKV, "single_blocks.3.linear1", "txt_in"])
    for spelling in (
        QKV,
        f"{QKV}.weight",
        f"{QKV}.input_scale",
        f"model.diffusion_model.{QKV}",
        f"diffusion_model.{QKV}",
        f"transformer.{QKV}",
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_transformer_double_blocks_0_img_attn_qkv",
    ):
        assert names.find(spelling) == QKV, spelling
    assert names.find("double_blocks.1.img_attn.qkv") is None
    inside = LayerNames([f"model.diffusion_model.{QKV}"])
    assert inside.find(QKV) == f"model.diffusion_model.{QKV}"
    encoder = LayerNames(["text_model.encoder.layers.0.mlp.fc1"])
    for spelling in (
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1",
    ):
        assert encoder.find(spelling) == "text_model.encoder.layers.0.mlp.fc1", spelling


def test_names_that_could_be_several_layers_are_none():
    names = LayerNames(["a.b_c", "a_b.c"])
    assert names.find("a.b_c") == "a.b_c"
    assert names.find("lora_unet_a_b_c") is None


def test_percentile_of_the_inputs_over_the_grid():
    class Record:
        def percentile(self, p):
            return {99.9: 8.96, 100: 44.8}[p]

    assert input_scale(Record()) == pytest.approx(0.02)
    assert input_scale(Record(), 100) == pytest.approx(0.1)
    assert input_scale(Record(), 100, 57344.0) == pytest.approx(44.8 / 57344)


def test_random_inputs_are_normal_and_the_layer_s_own():
    cpu = torch.device("cpu")
    x = random_inputs(1000, 64, 0, "a", cpu)
    assert x.shape == (64, 1000) and abs(float(x.std()) - 1) < 0.01
    assert torch.equal(x, random_inputs(1000, 64, 0, "a", cpu))
    assert not torch.equal(x, random_inputs(1000, 64, 0, "b", cpu))
    assert not torch.equal(x, random_inputs(1000, 64, 1, "a", cpu))
    reach, largest = range_of(x, 99.9)
    assert reach == pytest.approx(3.29, abs=0.1)  # two-sided normal quantile
    assert largest == float(x.abs().max()) > reach
    assert range_of(x, 100) == (largest, largest)


def test_lora_inputs_lie_in_the_directions_and_have_their_outliers():
    directions = torch.randn(4, 100)
    directions[:, 7] *= 50
    x = lora_inputs(directions, 64, 0, "a", torch.device("cpu"))
    assert torch.allclose(x.square().mean(1), torch.ones(64), atol=1e-4)
    assert torch.linalg.matrix_rank(x) == 4
    assert range_of(x, 99.9)[0] > 6  # random inputs of this size: 3.3


@pytest.mark.parametrize("suffix", ["lora_A.weight", "lora_down.weight", "lora.down.weight"])
def test_directions_of_several_loras(tmp_path, suffix):
    names = LayerNames([QKV, "txt_in"])
    for number in (1, 2):
        tensors = {
            f"diffusion_model.{QKV}.{suffix}": torch.randn(3, 16),
            f"diffusion_model.{QKV}.lora_up.weight": torch.randn(48, 3),
            f"other.{suffix}": torch.randn(3, 16),
        }
        save_file(tensors, tmp_path / f"{number}.safetensors")
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    found = read_directions(files, names)
    assert list(found) == [QKV] and found[QKV].shape == (6, 16)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [(f"{QKV}.lora_A.weight", torch.full((2, 4), torch.nan), "NaN"),
     (f"{QKV}.lora_A.weight", torch.zeros(2, 4), "zeros"),
     ("elsewhere.lora_A.weight", torch.ones(2, 4), "no LoRA")],
)  # fmt: skip
def test_loras_that_say_nothing(tmp_path, name, tensor, said):
    save_file({name: tensor}, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=said) as raised:
        read_directions([tmp_path / "bad.safetensors"], LayerNames([QKV]))
    assert "bad.safetensors" in str(raised.value)
