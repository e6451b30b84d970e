"""Presets of one's own: named, recognised, combined; and a file says which of them decided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from roundsmith import Recipe, plan_file, quantize_file
from roundsmith.cli import main
from roundsmith.converters.preset_files import (
    ENVIRONMENT,
    load_presets,
    look_for_presets_in,
    own_presets,
    user_presets_file,
)
from roundsmith.errors import RecipeError

MINE = [
    {
        "name": "mine",
        "category": "diffusion",
        "recognise": [{"all": ["wibble"]}],
        "keep": ["wobble"],
    },
    {"name": "other", "category": "diffusion", "keep": ["wubble"]},
    {"name": "unused", "category": "diffusion", "keep": ["blocks"]},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    names = ("wibble", "wobble", "wubble")
    path = tmp_path / "model.safetensors"
    save_file({f"blocks.0.{name}.weight": torch.randn(64, 64) for name in names}, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "presets of my own.json"
    path.write_text(json.dumps(MINE))
    return path


def kept(path: Path, recipe: Recipe) -> set[str]:
    return {t.layer.rpartition(".")[2] for t in plan_file(path, recipe).tensors if t.spec is None}


def test_a_file_made_with_ones_own_preset_says_it(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine, without the file, its recipe makes the same file."""
    monkeypatch.setenv(ENVIRONMENT, str(file))
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    quantize_file(model, out, Recipe())
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "none.json"))
    assert kept(model, Recipe()) == set()
    loaded = Recipe.load(out)
    assert [preset.name for preset in loaded.presets] == ["mine"], "those that decided, no others"
    assert kept(model, loaded) == {"wobble"}
    quantize_file(model, again, loaded)
    assert again.read_bytes() == out.read_bytes()


def test_a_recipes_own_presets_come_before_the_persons(
    model: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file was made with must not change with the machine it is made again on."""
    recipe = Recipe(preset=("mine", "other"), presets=own_presets(file))
    mine = [{"name": "mine", "category": "diffusion", "keep": ["wibble"]}]
    user_presets_file().write_text(json.dumps(mine))
    assert kept(model, recipe) == {"wobble", "wubble"}
    assert kept(model, Recipe(preset="mine")) == {"wibble"}
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_an_entry_of_a_built_in_name_is_laid_over_it() -> None:
    (flux,) = Recipe(presets=[{"name": "flux1", "keep": ["img_in"]}]).presets
    assert flux.keep == ("img_in",) and flux.recognise == load_presets()["flux1"].recognise
    with pytest.raises(RecipeError, match=r"Recipe\.presets\.0\.kep"):
        Recipe(presets=[{"name": "flux1", "kep": ["img_in"]}])


def test_the_flag_names_a_file(model: Path, file: Path, capsys: pytest.CaptureFixture) -> None:
    def run(*words: object) -> int:
        return main([str(word) for word in words])

    out = model.with_name("out.safetensors")
    assert run("quantize", model, out, "--presets", file, "--preset", "other") == 0
    assert Recipe.load(out).presets == own_presets(file)[1:2]
    assert run("plan", model, "--presets", file) == 0
    assert "model: mine: wibble" in capsys.readouterr().out
    before = model.read_bytes()
    file.write_text('[{"name": "mine", "category": "film"}]')
    assert run("plan", model, "--presets", file) == 2
    assert f"{file}: entry 0 ('mine'): field 'category'" in capsys.readouterr().err
    assert run("plan", model, "--presets", file.with_name("none.json")) == 2
    assert "none.json" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_an_unknown_preset_says_where_ones_own_go(model: Path) -> None:
    with pytest.raises(RecipeError) as error:
        plan_file(model, Recipe(preset="wrong"))
    assert "unknown preset 'wrong'; there are: auto, " in str(error.value)
    assert str(user_presets_file()) in str(error.value)


def test_presets_are_listed(file: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", "x", "--presets", str(file), "--list-presets"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "flux1 " in shown and "(yours)" in shown and str(file) in shown


def test_comfyuis_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    config = tmp_path / "config" / "roundsmith" / "presets.json"
    comfyui = tmp_path / "user" / "roundsmith" / "presets.json"
    monkeypatch.setattr("roundsmith.converters.preset_files._folders", [])
    assert user_presets_file() == config
    look_for_presets_in(comfyui.parent)
    assert user_presets_file() == comfyui, "where to put one"
    config.parent.mkdir(parents=True)
    config.write_text("[]")
    assert user_presets_file() == config, "the one there is"
    comfyui.parent.mkdir(parents=True)
    comfyui.write_text("[]")
    assert user_presets_file() == comfyui
