"""Layer configs: which entry decides, what foreign files say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from roundsmith.cli import main
from roundsmith.converters import Recipe, plan_file, quantize_file
from roundsmith.converters.layer_config import load_layer_config, specificity
from roundsmith.errors import RecipeError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three blocks of two layers, with a bias each."""
    path = tmp_path / "model.safetensors"
    tensors = {}
    for block in range(3):
        for layer in ("attn.qkv", "mlp.fc"):
            tensors[f"blocks.{block}.{layer}.weight"] = torch.randn(128, 256)
            tensors[f"blocks.{block}.{layer}.bias"] = torch.randn(128)
    save_file(tensors, path)
    return path


def formats(model: Path, **settings: object) -> dict[str, str | None]:
    """What each weight is planned as; None: kept."""
    plan = plan_file(model, Recipe(preset=None, **settings))
    return {
        t.layer: t.spec.describe() if t.spec else None
        for t in plan.tensors
        if t.name.endswith(".weight")
    }


def test_the_most_specific_entry_wins() -> None:
    assert specificity(r"blocks\.0\.attn\.qkv") > specificity("a_very_long_pattern_of_letters")
    assert specificity("attn.qkv") > specificity("attn")
    assert specificity("b.0") < specificity("blocks")  # a digit, but fewer than 8 literals


def test_entries_by_layer(model: Path) -> None:
    config = {
        "attn": {"format": "nvfp4"},
        r"blocks\.1\.attn\.qkv": {"format": "int8_tensorwise", "scaling": "tensor"},
        r"blocks\.2\.": {"skip": True},
        "_default": {"format": "mxfp8"},
    }
    assert formats(model, layer_config=config) == {
        "blocks.0.attn.qkv": "nvfp4",
        "blocks.0.mlp.fc": "mxfp8",
        "blocks.1.attn.qkv": "int8_tensorwise tensor",
        "blocks.1.mlp.fc": "mxfp8",
        "blocks.2.attn.qkv": None,
        "blocks.2.mlp.fc": None,
    }


def test_of_equally_specific_entries_the_first_wins(model: Path) -> None:
    config = {"attn.qk": {"format": "nvfp4"}, "attn.kv": {"skip": True}, "ttn.qkv": {"skip": True}}
    assert formats(model, layer_config=config)["blocks.0.attn.qkv"] == "nvfp4"


def test_precedence(model: Path) -> None:
    """Rules, then entries, then exclude, then _default, then the recipe."""
    settings = {
        "format": "mxfp8",
        "rules": [{"match": "blocks.0.attn", "format": "nvfp4"}],
        "layer_config": {
            "blocks.0.attn": {"skip": True},
            "blocks.1": {"format": "float8_e5m2"},
            "_default": {"format": "int8_blockwise"},
        },
        "exclude": ["blocks.1", "blocks.2.attn"],
    }
    assert formats(model, **settings) == {
        "blocks.0.attn.qkv": "nvfp4",
        "blocks.0.mlp.fc": "int8_blockwise block 128",
        "blocks.1.attn.qkv": "float8_e5m2",
        "blocks.1.mlp.fc": "float8_e5m2",
        "blocks.2.attn.qkv": None,
        "blocks.2.mlp.fc": "int8_blockwise block 128",
    }


def test_a_full_match_must_be_all_of_the_name(model: Path) -> None:
    config = {"attn.qkv": {"skip": True}, r"blocks\.0\.mlp\.fc": {"skip": True}}
    found = formats(model, layer_config=config, layer_config_match="full")
    assert [layer for layer, spec in found.items() if spec is None] == ["blocks.0.mlp.fc"]


def test_options_of_an_entry(model: Path) -> None:
    config = {"mlp": {"format": "int8_tensorwise", "convrot": 64, "rounding": "nearest"}}
    plan = plan_file(model, Recipe(preset=None, layer_config=config))
    layer = next(t for t in plan.tensors if t.layer == "blocks.0.mlp.fc")
    assert layer.spec is not None and layer.spec.convrot == 64
    assert layer.options is not None and layer.options.rounding == "nearest"


def test_names_of_convert_to_quant(tmp_path: Path) -> None:
    """Its own names of settings mean the same here; comments are no settings."""
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(
            {
                "_exclusions": [],
                "a": {"format": "float8_e4m3fn", "scaling_mode": "block", "block_size": 64},
                "b": {"format": "float8_e4m3fn", "scaling_mode": "row", "simple": True},
                "c": {"format": "int8_tensorwise", "scaling_mode": "tensor", "_shape": [4, 4]},
                "d": {"format": "float8_e4m3fn", "scaling_mode": "block3d"},
                "e": {"skip": True},
            }
        )
    )
    found = Recipe(layer_config=load_layer_config(file)).layer_config
    assert (found["a"].format, found["a"].group_size) == ("float8_e4m3fn_blockwise", 64)
    assert (found["b"].format, found["b"].rounding) == ("float8_e4m3fn_rowwise", "nearest")
    assert (found["c"].format, found["c"].scaling) == ("int8_tensorwise", "tensor")
    assert found["d"].format == "float8_e4m3fn_block3d"
    assert found["e"].skip


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"a": {"format": "fp9"}}, "fp9"),
        ({"a": {"format": ""}}, "layer_config.a: LayerEntry: the format is empty"),
        ({"a": {}}, "layer_config.a: LayerEntry: no format"),
        ({"a": {"skip": True, "format": "nvfp4"}}, "both skip and format"),
        ({"a(": {"skip": True}}, "a("),
        ({"a": "nvfp4"}, "an entry is an object"),
        ({"a": {"format": "nvfp4", "blocks": 3}}, "layer_config.a: LayerEntry.blocks"),
        ({"a": {"format": "nvfp4", "group_size": 7}}, "group_size"),
        ({"a": {"format": "nvfp4", "scaling_mode": "cube"}}, "cube"),
    ],
)
def test_what_is_refused(config: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(layer_config=config)
    assert says in str(caught.value)


def test_a_catastrophic_pattern_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    save_file(
        {"double_blocks.0.img_attn.some_long_projection_name.weight": torch.randn(64, 64)}, path
    )
    recipe = Recipe(
        preset=None, layer_config={r"(?:[a-z0-9_.]|[a-z0-9_.]{2})+[A-Z]": {"skip": True}}
    )
    with pytest.raises(RecipeError, match="takes too long"):
        plan_file(path, recipe)


@pytest.mark.parametrize("text", ["[]", "{", '"x"'])
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"config\.json"):
        load_layer_config(file)


def test_template_and_back(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The template of a plan makes the same plan; a file made with it says so."""
    file = tmp_path / "layers.json"
    options = ["--format", "int8", "--convrot", "auto", "--exclude", r"blocks\.1\.", "--json"]
    assert main(["plan", str(model), *options, "--template", str(file)]) == 0
    planned = {t["name"]: t["stored_as"] for t in json.loads(capsys.readouterr().out)["tensors"]}
    assert json.loads(file.read_text())[r"^blocks\.0\.attn\.qkv$"]["_shape"] == [128, 256]
    assert main(["plan", str(model), "--layer-config", str(file), "--json"]) == 0
    again = {t["name"]: t["stored_as"] for t in json.loads(capsys.readouterr().out)["tensors"]}
    assert again == planned
    assert any(stored for stored in planned.values())
    assert main(["plan", str(model), *options, "--template", str(file)]) == 1, "it exists"
    assert "overwriting" in capsys.readouterr().err


def test_the_recipe_comes_back_from_the_file(model: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        preset=None,
        rounding="nearest",
        layer_config={"attn": {"format": "nvfp4"}, "_default": {"format": "mxfp8"}},
    )
    quantize_file(model, tmp_path / "out.safetensors", recipe)
    assert Recipe.load(tmp_path / "out.safetensors") == recipe
    with pytest.raises(RecipeError, match="how it was made"):
        Recipe.load(model)
