"""Presets of one's own in ComfyUI's user folder: offered by the nodes, used, combined."""

from __future__ import annotations

import json
import logging

import folder_paths
import pytest

from roundsmith.errors import RecipeError
from roundsmith.nodes.load_recipe import LoadRecipe
from roundsmith.nodes.plan_quantization import PlanQuantization
from roundsmith.nodes.quantization_recipe import QuantizationRecipe
from roundsmith.nodes.quantize_file import QuantizeFile

SOURCE = "diffusion_models/roundsmith-demo-flux-digits.safetensors"
FP8 = {"format": "float8_e4m3fn"}
MINE = [
    {"name": "mine", "category": "diffusion", "keep": ["single_blocks"]},
    {"name": "mine-too", "category": "diffusion", "keep": ["double_blocks"]},
]


@pytest.fixture
def presets(base, tmp_path, monkeypatch):
    """The file of a person who has presets; one elsewhere does not count."""
    user = tmp_path / "user"
    monkeypatch.setattr("roundsmith.converters.preset_files._folders", [])
    monkeypatch.delenv("ROUNDSMITH_PRESETS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(user))
    file = user / "roundsmith" / "presets.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(MINE))
    offered()
    yield file
    folder_paths.set_user_directory(before)


def offered():
    """What the node offers now, as ComfyUI asks when the browser is loaded."""
    QuantizationRecipe.GET_SCHEMA()
    inputs = {i.id: i for i in QuantizationRecipe.define_schema().inputs}
    return inputs["preset"].options


def kept(recipe):
    config = json.loads(PlanQuantization.execute(SOURCE, FP8, recipe=recipe).args[2])
    return {name[1:14] for name, entry in config.items() if entry.get("skip") and "blocks" in name}


def test_they_are_offered_used_and_combined(presets, demo):
    assert {"auto", "none", "flux1", "mine", "mine-too"} <= set(offered())
    one = QuantizationRecipe.execute(FP8, preset="mine").args[0]
    assert kept(one) == {"single_blocks"}
    both = QuantizationRecipe.execute(FP8, preset="mine", more_presets="mine-too\n").args[0]
    assert kept(both) == {"single_blocks", "double_blocks"}
    none = QuantizationRecipe.execute(FP8, preset="none", more_presets="mine-too").args[0]
    assert kept(none) == {"double_blocks"}


def test_the_file_that_was_made_says_them(presets, base, demo):
    recipe = QuantizationRecipe.execute(FP8, preset="mine").args[0]
    settings = {"rounding": {"rounding": "nearest"}, "recipe": recipe}
    QuantizeFile.execute(SOURCE, FP8, "same as source", "own", True, **settings)
    presets.unlink()
    path = base / "models" / "diffusion_models" / "own.safetensors"
    try:
        loaded = LoadRecipe.execute("diffusion_models/own.safetensors").args[0]
        assert kept(loaded) == {"single_blocks"}
    finally:
        path.unlink()
    with pytest.raises(RecipeError, match="unknown preset 'mine'"):
        kept(recipe)


def test_a_bad_file_leaves_the_nodes_and_is_named(presets, demo, caplog):
    presets.write_text('[{"name": "mine"}]')
    with caplog.at_level(logging.WARNING):
        assert "flux1" in offered() and "mine" not in offered()
    assert str(presets) in caplog.text
    with pytest.raises(RecipeError, match=r"entry 0 \('mine'\): field 'category'"):
        PlanQuantization.execute(SOURCE, FP8)
