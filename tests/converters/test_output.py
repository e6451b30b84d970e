"""How a file says what its layers are: the older fp8_scaled layout, and scales as [1]."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file as plain_load
from safetensors.torch import save_file

from roundsmith import Recipe, load_file, plan_file, quantize_file, quantize_module
from roundsmith.converters.migrating import MigrateOptions, migrate_file
from roundsmith.converters.patching import Destination
from roundsmith.errors import FormatError, RecipeError, RoundsmithError

from ..contract import bits, weights

SETTINGS = [
    {},
    {"keep_1d_scales": True},
    {"input_scale": "weight"},
    {"full_precision_matrix_mult": True},
    {"full_precision_matrix_mult": False, "keep_1d_scales": True},
    {"format": "float8_e5m2"},
    {"format": "float8_e4m3fn_rowwise"},
    {"format": "float8_e4m3fn_blockwise", "group_size": 64},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = {
        "blocks.0.a.weight": weights("random", 128, 64).bfloat16(),
        "blocks.0.a.bias": torch.randn(128).bfloat16(),
        "blocks.0.b.weight": weights("outliers", 64, 128),
        "blocks.0.norm.weight": torch.ones(64),
        "stranger": torch.arange(5),
    }
    path = tmp_path / "source.safetensors"
    save_file(tensors, path, {"title": "small"})
    return path


def recipe(**settings: object) -> Recipe:
    return Recipe(preset=None, rounding="nearest", **settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_older_layout_holds_the_same_weights(source: Path, tmp_path: Path, settings) -> None:
    """Codes and scales are comfy_quant's to the last bit; the plan knows the size; the recipe
    comes back."""
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    wanted = recipe(output="fp8_scaled", **settings)
    quantize_file(source, old, wanted)
    quantize_file(source, new, wanted.in_memory)
    assert old.stat().st_size == plan_file(source, wanted).size
    assert Recipe.load(old) == wanted
    a, b = plain_load(old), plain_load(new)
    assert not [name for name in a if name.endswith((".comfy_quant", "weight_scale"))]
    with safe_open(str(old), "pt") as file:
        assert set(file.metadata()) == {"title", "roundsmith_recipe"}, "a header would win"
    pairs = {"weight": "weight", "scale_weight": "weight_scale", "scale_input": "input_scale"}
    for layer in ("blocks.0.a", "blocks.0.b"):
        for suffix, today in pairs.items():
            assert (f"{layer}.{suffix}" in a) == (f"{layer}.{today}" in b)
            if f"{layer}.{suffix}" in a:
                one, other = a[f"{layer}.{suffix}"], b[f"{layer}.{today}"]
                assert torch.equal(bits(one.flatten()), bits(other.flatten()))
    for name in ("blocks.0.a.bias", "blocks.0.norm.weight", "stranger"):
        assert torch.equal(bits(a[name]), bits(b[name]))
    read, same = load_file(old), load_file(new)
    for name in ("blocks.0.a.weight", "blocks.0.b.weight"):
        assert torch.equal(read[name].dequantize(), same[name].dequantize())


@pytest.mark.parametrize(
    ("settings", "elements"),
    [
        ({}, 2),
        ({"full_precision_matrix_mult": True}, 2),
        ({"full_precision_matrix_mult": False}, 0),
        ({"input_scale": "weight"}, 0),
        ({"input_scale": "weight", "full_precision_matrix_mult": True}, 2),
    ],
    ids=str,
)
def test_the_marker(source: Path, tmp_path: Path, settings, elements) -> None:
    """As a migration to the layout would write it."""
    out = tmp_path / "out.safetensors"
    report = quantize_file(source, out, recipe(output="fp8_scaled", **settings))
    marker = plain_load(out)["scaled_fp8"]
    assert marker.shape == (elements,) and marker.dtype == torch.float8_e4m3fn
    told = [text for text in report.warnings if "2 elements" in text]
    assert bool(told) == (settings == {})
    new, moved = tmp_path / "new.safetensors", tmp_path / "moved.safetensors"
    quantize_file(source, new, recipe(**settings))
    full = settings.get("full_precision_matrix_mult")
    options = MigrateOptions(to="fp8_scaled", full_precision_matrix_mult=full)
    migrate_file(new, Destination(moved), options)
    a, b = plain_load(out), plain_load(moved)
    assert a.keys() == b.keys()
    assert all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


def test_markers_stand_where_comfyui_looks(source: Path, tmp_path: Path) -> None:
    """In a checkpoint each part has its own, in front of its names."""
    prefixes = ("model.diffusion_model.", "text_encoders.t5xxl.transformer.")
    tensors = {p + k: v.clone() for p in prefixes for k, v in plain_load(source).items()}
    save_file(tensors, tmp_path / "whole.safetensors")
    out = tmp_path / "out.safetensors"
    rules = [{"match": ".", "format": "float8_e4m3fn"}]
    wanted = Recipe(output="fp8_scaled", rules=rules, rounding="nearest")
    quantize_file(tmp_path / "whole.safetensors", out, wanted)
    markers = sorted(name for name in plain_load(out) if name.endswith("scaled_fp8"))
    assert markers == ["model.diffusion_model.scaled_fp8", "text_encoders.scaled_fp8"]
    assert out.stat().st_size == plan_file(tmp_path / "whole.safetensors", wanted).size


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"format": "nvfp4"}, "format is nvfp4"),
        ({"format": "auto"}, "format is auto"),
        ({"rules": [{"match": "a", "format": "int8"}]}, "rules.0 is int8_tensorwise"),
        ({"fallback": {"format": "mxfp8"}}, "fallback is mxfp8"),
        ({"layer_config": {"qkv": {"format": "nvfp4"}}}, "layer_config.qkv is nvfp4"),
    ],
    ids=str,
)
def test_formats_it_cannot_hold_are_refused(settings, named) -> None:
    with pytest.raises(RecipeError, match=f"fp8_scaled holds FP8.*{named}.*output comfy_quant"):
        recipe(output="fp8_scaled", **settings)


def test_layers_of_the_source_that_it_cannot_hold(source: Path, tmp_path: Path) -> None:
    """A layer that is kept in another format is named; nothing is written."""
    first, out = tmp_path / "first.safetensors", tmp_path / "out.safetensors"
    quantize_file(source, first, recipe(format="int8"))
    before = first.read_bytes()
    skip = [{"match": "b$", "skip": True}]
    with pytest.raises(FormatError, match=r"'blocks\.0\.b' is int8_tensorwise.*comfy_quant"):
        quantize_file(first, out, recipe(output="fp8_scaled", rules=skip))
    assert first.read_bytes() == before and not out.exists()


def test_one_answer_for_the_file(source: Path, tmp_path: Path) -> None:
    rules = [{"match": "a$", "full_precision_matrix_mult": True}]
    with pytest.raises(RoundsmithError, match=r"'blocks\.0\.a' asks.*'blocks\.0\.b' does not"):
        quantize_file(source, tmp_path / "out", recipe(output="fp8_scaled", rules=rules))
    rules = [{"match": "a$", "format": "float8_e5m2"}]
    with pytest.raises(RoundsmithError, match="different FP8 dtypes"):
        quantize_file(source, tmp_path / "out", recipe(output="fp8_scaled", rules=rules))


def test_layers_that_are_fp8_already_get_the_layout_too(source: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first.safetensors", tmp_path / "out.safetensors"
    quantize_file(source, first, recipe())
    quantize_file(first, out, recipe(output="fp8_scaled", exclude=["."]))
    a, b = plain_load(first), plain_load(out)
    assert torch.equal(a["blocks.0.a.weight_scale"], b["blocks.0.a.scale_weight"])
    assert torch.equal(bits(a["blocks.0.a.weight"]), bits(b["blocks.0.a.weight"]))


@pytest.mark.parametrize(
    "settings",
    [{}, {"format": "int8", "scaling": "tensor"}, {"input_scale": "weight"}],
    ids=str,
)
def test_scales_as_lists_of_one(source: Path, tmp_path: Path, settings) -> None:
    """The same values in the shape [1]; scales of rows and blocks keep theirs."""
    listed, plain = tmp_path / "listed.safetensors", tmp_path / "plain.safetensors"
    wanted = recipe(keep_1d_scales=True, **settings)
    quantize_file(source, listed, wanted)
    quantize_file(source, plain, recipe(**settings))
    assert listed.stat().st_size == plan_file(source, wanted).size
    a, b = plain_load(listed), plain_load(plain)
    scales = [name for name in a if name.endswith("_scale")]
    assert len(scales) == (4 if "input_scale" in settings else 2)
    assert all(a[n].shape == (1,) and b[n].shape == () and a[n].item() == b[n].item()
               for n in scales)  # fmt: skip
    assert all(torch.equal(bits(a[n]), bits(b[n])) for n in a if n not in scales)
    read, same = load_file(listed), load_file(plain)
    x = read["blocks.0.a.weight"].dequantize()
    assert torch.equal(x, same["blocks.0.a.weight"].dequantize())
    rows = tmp_path / "rows.safetensors"
    quantize_file(source, rows, recipe(format="int8", keep_1d_scales=True))
    assert plain_load(rows)["blocks.0.a.weight_scale"].shape == (128, 1)


def test_in_memory_the_layout_does_not_count() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 128))
    _, report = quantize_module(module, recipe(output="fp8_scaled", keep_1d_scales=True))
    assert report.quantized == 1
    assert module(torch.randn(2, 64)).shape == (2, 128)
