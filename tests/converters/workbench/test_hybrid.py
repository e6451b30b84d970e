"""MXFP8 made hybrid: the peer's file, the tight scale, imported scales; codes never change."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from roundsmith import Recipe, quantize_file
from roundsmith.checkpoints import encode_conf
from roundsmith.checkpoints.quantization import HEADER_KEY
from roundsmith.converters import hybrid
from roundsmith.converters.hybrid import HybridOptions, make_hybrid
from roundsmith.converters.patching import Destination
from roundsmith.errors import CheckpointError, RecipeError

from .files import codes, contents, decoded, metadata, peer, same_weights, save


def make(path, out, **options):
    return make_hybrid(path, Destination(out), HybridOptions(**options))


@pytest.fixture
def model(tmp_path):
    tensors = {f"blocks.{i}.fc.weight": torch.randn(64, 96) * (i + 1) for i in range(3)}
    tensors["zero.weight"] = torch.zeros(32, 32)
    tensors["keep.weight"] = torch.randn(40, 33)
    return save(tmp_path / "original.safetensors", tensors)


def quantized(model, format, **options):
    path = model.with_name(f"{format}.safetensors")
    quantize_file(model, path, Recipe(format=format, preset=None, **options))
    return path


def test_the_largest_block_scale_is_the_peers(tmp_path):
    """Every tensor of the peer's hybrid file, to the last bit."""
    out = tmp_path / "out.safetensors"
    make(peer("mxfp8"), out)
    theirs, ours = contents(peer("hybrid_mxfp8")), contents(out)
    assert ours.keys() == theirs.keys()
    scalars = [name for name in ours if name.endswith("weight_scalar")]
    assert len(scalars) == 5
    zero = "single_blocks.0.linear2"  # no block of it has a scale: any number will do
    assert all(ours[x] == theirs[x] for x in scalars if not x.startswith(zero))
    assert float(load_file(out)[f"{zero}.weight_scalar"]) > 0
    others = [x for x in ours if x not in scalars and not x.endswith("comfy_quant")]
    assert all(ours[x] == theirs[x] for x in others)
    mine, header = json.loads(metadata(out)[HEADER_KEY]), metadata(peer("hybrid_mxfp8"))[HEADER_KEY]
    assert mine == json.loads(header)


@pytest.mark.parametrize("scalar", ["largest", "tight"])
def test_codes_stay_and_a_second_run_changes_nothing(model, tmp_path, scalar):
    path, out = quantized(model, "mxfp8"), tmp_path / "out.safetensors"
    report = make(path, out, scalar=scalar)
    assert codes(path) == codes(out) and same_weights(path, out)
    assert report.facts == {"layers made hybrid": "5 of 5"}
    again = make(out, tmp_path / "again.safetensors", scalar=scalar)
    assert again.changes == ()
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()


def test_tight_is_the_largest_weight_over_448(model, tmp_path, monkeypatch):
    monkeypatch.setattr(hybrid, "_CHUNK", 96 * 7)  # rows at a time that divide nothing
    path, out = quantized(model, "mxfp8"), tmp_path / "out.safetensors"
    make(path, out, scalar="tight")
    tensors = load_file(out)
    for name, weight in decoded(path).items():
        scalar = tensors[name.removesuffix("weight") + "weight_scalar"]
        assert scalar.shape == () and scalar.dtype == torch.float32
        if weight.any():
            assert float(scalar) == pytest.approx(float(weight.abs().max()) / 448, rel=1e-6)


@pytest.mark.parametrize("form", ["largest", "tight"])
def test_as_quantizing_to_hybrid_at_once(model, tmp_path, form):
    direct = quantized(model, "hybrid_mxfp8", form=form)
    out = tmp_path / "out.safetensors"
    make(quantized(model, "mxfp8"), out, scalar=form)
    assert contents(out).keys() == contents(direct).keys()
    for name, value in contents(direct).items():
        if not name.startswith("zero.") and not name.endswith("comfy_quant"):
            assert contents(out)[name] == value, name


def test_changing_ones_mind(model, tmp_path):
    path = quantized(model, "mxfp8")
    make(path, tmp_path / "1.safetensors")
    report = make(tmp_path / "1.safetensors", tmp_path / "2.safetensors", scalar="tight")
    assert {x.what for x in report.changes} == {"value"}
    make(path, tmp_path / "3.safetensors", scalar="tight")
    assert contents(tmp_path / "2.safetensors") == contents(tmp_path / "3.safetensors")


def test_imported_scales(model, tmp_path):
    path, fp8 = quantized(model, "mxfp8"), quantized(model, "float8_e4m3fn")
    renamed = {f"model.diffusion_model.{k}": v for k, v in load_file(fp8).items()}
    other, out = save(tmp_path / "other.safetensors", renamed), tmp_path / "out.safetensors"
    report = make(path, out, scalar="import", source=other)
    mine, theirs = load_file(out), load_file(fp8)
    for index in range(3):
        scale = theirs[f"blocks.{index}.fc.weight_scale"]
        assert torch.equal(mine[f"blocks.{index}.fc.weight_scalar"], scale)
    assert not any("too small" in note for note in report.notes)
    for name in renamed:
        if name.endswith("weight_scale"):
            renamed[name] = renamed[name] / 4
    small = save(tmp_path / "small.safetensors", renamed)
    report = make(path, tmp_path / "2.safetensors", scalar="import", source=small)
    assert any("3 imported scales are too small" in note or "4 imported" in note
               for note in report.notes)  # fmt: skip


def test_only_some_layers_and_other_formats_stay(model, tmp_path):
    path = model.with_name("mixed.safetensors")
    recipe = Recipe(format="mxfp8", preset=None,
                    rules=({"match": "blocks.2", "format": "int8_tensorwise"},))  # fmt: skip
    quantize_file(model, path, recipe)
    out = tmp_path / "out.safetensors"
    make(path, out, layers="blocks")
    confs = {k: v["format"] for k, v in json.loads(metadata(out)[HEADER_KEY])["layers"].items()}
    assert confs["blocks.0.fc"] == confs["blocks.1.fc"] == "hybrid_mxfp8"
    assert confs["blocks.2.fc"] == "int8_tensorwise" and confs["zero"] == "mxfp8"


def test_what_cannot_be(model, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=r"no MXFP8 layers .*float8_e4m3fn"):
        make(quantized(model, "float8_e4m3fn"), out)
    with pytest.raises(CheckpointError, match="nothing is quantized"):
        make(model, out)
    path = quantized(model, "mxfp8")
    with pytest.raises(CheckpointError, match=r"none of the 5 MXFP8 layers"):
        make(path, out, layers="nowhere")
    with pytest.raises(CheckpointError, match=r"layer 'blocks\.0\.fc' is mxfp8 there"):
        make(path, out, scalar="import", source=path, layers="blocks.0")
    with pytest.raises(CheckpointError, match=r"layer 'blocks\.0\.fc' is not in it"):
        make(path, out, scalar="import", source=model, layers="blocks.0")
    bad = save(tmp_path / "bad.safetensors", {
        "blocks.0.fc.weight": torch.zeros(64, 96, dtype=torch.float8_e4m3fn),
        "blocks.0.fc.weight_scale": torch.zeros(()),
        "blocks.0.fc.comfy_quant": encode_conf({"format": "float8_e4m3fn"}),
    })  # fmt: skip
    with pytest.raises(CheckpointError, match="nothing can be divided by"):
        make(path, out, scalar="import", source=bad, layers="blocks.0")
    assert not out.exists()
    with pytest.raises(RecipeError, match="go together"):
        HybridOptions(scalar="import")
    with pytest.raises(RecipeError, match="go together"):
        HybridOptions(source=path)
