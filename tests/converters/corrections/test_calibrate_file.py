"""Input scales into files: what is added, what is copied, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from roundsmith import Recipe, quantize_file
from roundsmith.checkpoints import encode_conf
from roundsmith.converters.calibration import capture
from roundsmith.converters.corrections import CalibrateOptions, calibrate_file
from roundsmith.converters.corrections.calibrate_file import METADATA_KEY
from roundsmith.errors import (
    Cancelled,
    CheckpointError,
    DestinationExistsError,
    RecipeError,
    RoundsmithError,
)

from .conftest import SHAPES, contents

QKV = "double_blocks.0.img_attn.qkv"


def metadata(path):
    with safe_open(str(path), "pt") as file:
        return file.metadata()


def scales(path):
    return {k: float(v) for k, v in load_file(path).items() if k.endswith("input_scale")}


@pytest.mark.parametrize("percentile", [99.9, 100])
def test_measured(model, tmp_path, percentile):
    """The scale is the percentile over 448; the report has the maximum beside it."""
    out = tmp_path / "out.safetensors"
    options = CalibrateOptions(percentile=percentile)
    report = calibrate_file(model.quantized(), out, options, model.calibration)
    for layer in report.layers:
        record = model.calibration.record(layer.name)
        expected = record.percentile(percentile) / 448
        assert float(load_file(out)[f"{layer.name}.input_scale"]) == pytest.approx(expected)
        assert layer.scale == pytest.approx(expected)
        assert layer.largest == pytest.approx(float(record.absmax.max()))
        assert (layer.reach == layer.largest) == (percentile == 100)
    assert report.changed == len(SHAPES) and "measured" in report.meaning


@pytest.mark.parametrize("mode", ["measured", "random", "lora", "import", "weight", "constant"])
def test_only_input_scales_are_new_and_a_second_run_changes_nothing(model, tmp_path, mode):
    save_file({f"lora_unet_{QKV.replace('.', '_')}.lora_down.weight": torch.randn(4, 64)},
              tmp_path / "lora.safetensors")  # fmt: skip
    (tmp_path / "scales.json").write_text(json.dumps({f"model.diffusion_model.{QKV}": 0.25}))
    options = CalibrateOptions(
        mode=mode,
        loras=(tmp_path / "lora.safetensors",) if mode == "lora" else (),
        scales=tmp_path / "scales.json" if mode == "import" else None,
    )
    calibration = model.calibration if mode == "measured" else None
    source = model.quantized()
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    report = calibrate_file(source, first, options, calibration)
    layers = [QKV] if mode in ("lora", "import") else list(SHAPES)
    before, after = contents(source), contents(first)
    assert set(after) - set(before) == {f"{layer}.input_scale" for layer in layers}
    assert {k: after[k] for k in before} == before
    for layer in layers:
        scale = load_file(first)[f"{layer}.input_scale"]
        assert scale.dtype == torch.float32 and scale.shape == () and scale > 0
    assert report.changed == len(layers)
    old, new = metadata(source), metadata(first)
    assert {k: v for k, v in new.items() if k != METADATA_KEY} == old
    said = json.loads(new[METADATA_KEY])
    assert [run["mode"] for run in said] == [mode]
    if mode in ("random", "lora"):
        assert "no measured activations" in said[0]["meaning"]
        assert "no measured activations" in report.summary()
        assert any("estimates" in warning for warning in report.warnings)
    again = calibrate_file(first, second, options, calibration)
    assert again.changed == 0
    assert second.read_bytes() == first.read_bytes()


def test_values_of_the_simple_modes(model, tmp_path):
    out = tmp_path / "out.safetensors"
    calibrate_file(model.quantized(), out, CalibrateOptions(mode="constant"))
    assert set(scales(out).values()) == {1.0}
    calibrate_file(model.quantized(), out, CalibrateOptions(mode="weight"), overwrite=True)
    for layer in SHAPES:
        tensors = load_file(out)
        assert torch.equal(tensors[f"{layer}.input_scale"], tensors[f"{layer}.weight_scale"])


def test_the_later_run_wins_and_both_are_told(model, tmp_path):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    calibrate_file(model.quantized(), first, CalibrateOptions(mode="random"))
    options = CalibrateOptions(mode="constant", layers="double_blocks")
    report = calibrate_file(first, second, options)
    assert report.changed == 3
    assert [x.reason for x in report.layers if x.name.startswith("single")] == ["not selected"]
    assert scales(second)["single_blocks.0.linear1.input_scale"] == (
        scales(first)["single_blocks.0.linear1.input_scale"]
    )
    assert [run["mode"] for run in json.loads(metadata(second)[METADATA_KEY])] == [
        "random",
        "constant",
    ]


def test_formats_that_scale_inputs_at_run_time_are_left_alone(model, tmp_path):
    source, out = model.quantized("int8_tensorwise"), tmp_path / "out.safetensors"
    report = calibrate_file(source, out, CalibrateOptions(mode="random"))
    assert report.changed == 0 and "run time" in report.layers[0].reason
    assert out.read_bytes() == source.read_bytes()
    (tmp_path / "scales.json").write_text(json.dumps({QKV: 0.25}))
    options = CalibrateOptions(mode="import", scales=tmp_path / "scales.json")
    assert calibrate_file(source, out, options, overwrite=True).changed == 1


def test_unknown_tensors_opaque_ones_and_metadata_are_kept(model, tmp_path):
    source = model.quantized()
    tensors = {**load_file(source), "what.is.this": torch.arange(7, dtype=torch.int16)}
    header = {**metadata(source), "note": "kept"}
    save_file(tensors, tmp_path / "in.safetensors", header)
    calibrate_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors",
                   CalibrateOptions(mode="random"))  # fmt: skip
    assert torch.equal(load_file(tmp_path / "out.safetensors")["what.is.this"], torch.arange(7))
    assert metadata(tmp_path / "out.safetensors")["note"] == "kept"


def test_header_and_tensors_that_differ_are_brought_in_step(model, tmp_path):
    source = model.quantized()
    tensors, header = load_file(source), metadata(source)
    key = "_quantization_metadata"
    listed = json.loads(header[key])
    listed["layers"][QKV]["full_precision_matrix_mult"] = True
    del listed["layers"]["single_blocks.0.linear1"]
    tensors[f"{QKV}.comfy_quant"] = encode_conf({"format": "float8_e4m3fn", "orig_dtype": "bf16"})
    save_file(tensors, tmp_path / "in.safetensors", {**header, key: json.dumps(listed)})
    out = tmp_path / "out.safetensors"
    report = calibrate_file(tmp_path / "in.safetensors", out, CalibrateOptions(mode="random"))
    together = json.loads(metadata(out)[key])["layers"]
    stored = {
        name: json.loads(bytes(load_file(out)[f"{name}.comfy_quant"].tolist())) for name in SHAPES
    }
    assert stored == together
    assert together[QKV] == {
        "format": "float8_e4m3fn", "full_precision_matrix_mult": True, "orig_dtype": "bf16",
    }  # fmt: skip
    assert any("full-precision" in warning and QKV in warning for warning in report.warnings)


def test_legacy_files_keep_their_names(tmp_path):
    tensors = {
        "a.weight": torch.randn(32, 32).to(torch.float8_e4m3fn),
        "a.scale_weight": torch.tensor(0.5),
        "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    out, again = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    calibrate_file(tmp_path / "in.safetensors", out, CalibrateOptions(mode="random"))
    assert set(load_file(out)) == {*tensors, "a.scale_input"}
    calibrate_file(out, again, CalibrateOptions(mode="random"))
    assert out.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("mode", ["measured", "random", "constant", "weight"])
def test_a_pattern_that_no_layer_has(model, tmp_path, mode):
    """Not an unchanged copy: the pattern is a mistake."""
    options = CalibrateOptions(mode=mode, layers="txt_attn$")
    calibration = model.calibration if mode == "measured" else None
    source = model.quantized()
    with pytest.raises(CheckpointError, match=r"'txt_attn\$': none of the 4 .*img_attn.*, \.\.\."):
        calibrate_file(source, tmp_path / "out.safetensors", options, calibration)
    assert not (tmp_path / "out.safetensors").exists()


def test_statistics_that_miss_a_layer_or_are_of_another_model(model, tmp_path):
    out = tmp_path / "out.safetensors"
    source = model.quantized()
    tensors = load_file(source)
    tensors["extra.weight"] = torch.randn(8, 8).to(torch.float8_e4m3fn)
    tensors["extra.weight_scale"] = torch.tensor(0.5)
    tensors["extra.comfy_quant"] = encode_conf({"format": "float8_e4m3fn"})
    save_file(tensors, tmp_path / "in.safetensors", metadata(source))
    report = calibrate_file(tmp_path / "in.safetensors", out, None, model.calibration)
    assert {x.name: x.reason for x in report.layers}["extra"] == "never reached in the calibration"
    assert "extra.input_scale" not in load_file(out)
    other = {name.replace("blocks", "layers"): tensor for name, tensor in tensors.items()}
    save_file(other, tmp_path / "in.safetensors")
    with pytest.raises(RoundsmithError, match="another model"):
        calibrate_file(tmp_path / "in.safetensors", out, None, model.calibration, overwrite=True)


def test_imports_of_another_model(model, tmp_path):
    path = tmp_path / "scales.json"
    options = CalibrateOptions(mode="import", scales=path)
    path.write_text('{"elsewhere": 0.5}')
    with pytest.raises(CheckpointError, match=r"scales\.json: none of its 1 .*elsewhere"):
        calibrate_file(model.quantized(), tmp_path / "out.safetensors", options)
    path.write_text(json.dumps({QKV: 0.5, f"diffusion_model.{QKV}": 0.25}))
    with pytest.raises(CheckpointError, match="another spelling"):
        calibrate_file(model.quantized(), tmp_path / "out.safetensors", options)
    path.write_text(json.dumps({QKV: 0.5, "elsewhere": 0.25}))
    report = calibrate_file(model.quantized(), tmp_path / "out.safetensors", options)
    assert any("elsewhere" in warning for warning in report.warnings)


def test_a_lora_of_another_width(model, tmp_path):
    lora = tmp_path / "l.safetensors"
    save_file({f"diffusion_model.{QKV}.lora_A.weight": torch.randn(4, 63)}, lora)
    options = CalibrateOptions(mode="lora", loras=(lora,))
    with pytest.raises(CheckpointError, match=rf"l\.safetensors.*{QKV}.*63 inputs, the layer 64"):
        calibrate_file(model.quantized(), tmp_path / "out.safetensors", options)


@pytest.mark.parametrize(
    "settings",
    [{"mode": "lora"}, {"mode": "import"}, {"percentile": 0}, {"percentile": 101}, {"samples": 0},
     {"mode": "guess"}, {"mode": "random", "loras": ("x",)}, {"layers": "("}],
)  # fmt: skip
def test_bad_settings(settings):
    with pytest.raises(RecipeError):
        CalibrateOptions(**settings)


def test_bad_calls(model, tmp_path):
    source, out = model.quantized(), tmp_path / "out.safetensors"
    with pytest.raises(RecipeError, match="calibration go together"):
        calibrate_file(source, out)
    with pytest.raises(RecipeError, match="not usable here"):
        calibrate_file(source, out, CalibrateOptions(mode="random", device="quantum"))
    random = CalibrateOptions(mode="random")
    with pytest.raises(CheckpointError, match="no quantized layers"):
        calibrate_file(model.original, out, random)
    with pytest.raises(CheckpointError, match="is the source itself"):
        calibrate_file(source, source, random, overwrite=True)
    with pytest.raises(Cancelled):
        calibrate_file(source, out, random, cancel=lambda: True)
    assert not out.exists()
    out.write_bytes(b"precious")
    with pytest.raises(DestinationExistsError):
        calibrate_file(source, out, random)
    assert out.read_bytes() == b"precious"
    assert not list(tmp_path.glob("*.partial*"))


def test_inputs_that_are_all_zero_give_no_scale(tmp_path):
    network = nn.ModuleDict({"a": nn.Linear(32, 32, bias=False)})
    save_file({"a.weight": network["a"].weight.detach()}, tmp_path / "in.safetensors")
    quantize_file(tmp_path / "in.safetensors", tmp_path / "q.safetensors", Recipe(preset=None))
    with capture(network) as calibration:
        network["a"](torch.zeros(100, 32))
    out = tmp_path / "out.safetensors"
    report = calibrate_file(tmp_path / "q.safetensors", out, None, calibration)
    assert "no usable scale" in report.layers[0].reason and report.changed == 0
    assert "a.input_scale" not in load_file(out)


def test_statistics_of_a_text_encoder_in_its_wrapper(tmp_path):
    """ComfyUI calls ``clip_l.transformer.text_model…`` what the file calls ``text_model…``."""
    name = "text_model.encoder.layers.0.mlp"
    inner = nn.ModuleDict({"fc1": nn.Linear(32, 32, bias=False)})
    layers = nn.ModuleDict({"layers": nn.ModuleDict({"0": nn.ModuleDict({"mlp": inner})})})
    encoder = nn.ModuleDict({"text_model": nn.ModuleDict({"encoder": layers})})
    network = nn.ModuleDict({"clip_l": nn.ModuleDict({"transformer": encoder})})
    with capture(network) as calibration:
        inner["fc1"](torch.randn(100, 32))
    save_file({f"{name}.fc1.weight": inner["fc1"].weight.detach()}, tmp_path / "in.safetensors")
    quantize_file(tmp_path / "in.safetensors", tmp_path / "q.safetensors", Recipe(preset=None))
    report = calibrate_file(tmp_path / "q.safetensors", tmp_path / "out.safetensors", None,
                            calibration)  # fmt: skip
    assert report.changed == 1 and report.layers[0].name == f"{name}.fc1"
