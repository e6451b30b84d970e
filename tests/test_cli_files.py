"""The files a command names: it writes over none, and what cannot be written shows early."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from roundsmith import Recipe, quantize_file
from roundsmith.cli import main
from roundsmith.converters.calibration import capture


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Path]:
    """A model, its FP8 file, a calibration, and the small files that flags take."""
    torch.manual_seed(2)
    model = nn.ModuleDict({name: nn.Linear(64, 64) for name in ("one", "two")})
    names = {"safetensors": ("model", "fp8", "calibration", "lora"),
             "json": ("recipe", "config", "scales")}  # fmt: skip
    files = {name: tmp_path / f"{name}.{end}" for end in names for name in names[end]}
    save_file(dict(model.state_dict()), files["model"])
    quantize_file(files["model"], files["fp8"], Recipe(preset=None))
    with capture(model) as captured:
        for layer in model.values():
            layer(torch.randn(300, 64))
    captured.save(files["calibration"])
    save_file({"one.lora_A.weight": torch.randn(2, 64)}, files["lora"])
    files["recipe"].write_text('{"preset": null}')
    files["config"].write_text('{"two": {"skip": true}}')
    files["scales"].write_text('{"one": 0.5}')
    return files


def run(*words: object) -> int:
    return main([str(word) for word in words])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def commands(files: dict[str, Path], side: object) -> list[list[object]]:
    """Every command with a side file, reading all that it can."""
    recipe = ("--recipe", files["recipe"], "--layer-config", files["config"],
              "--input-scale", "imported", "--input-scales", files["scales"])  # fmt: skip
    model, fp8, seen = files["model"], files["fp8"], ("--calibration", files["calibration"])
    out = files["model"].with_name("out.safetensors")
    budget = ("budget", model, "--bits", 12, *seen, *recipe, "--overwrite")
    return [
        ["quantize", model, out, *seen, *recipe, "--overwrite", "--report", side],
        [*budget, "--save", side],
        [*budget, "--chart", side],
        ["plan", model, *recipe, "--template", side],
        ["inspect", fp8, "--original", model, "--chart", side],
        ["compare", model, fp8, *seen, "--picture", side],
        ["scales", fp8, "--overwrite", "--export", side],
    ]


COMMANDS = ("quantize", "save", "budget chart", "plan", "inspect", "compare", "export")


@pytest.mark.parametrize("index", range(len(COMMANDS)), ids=COMMANDS)
def test_a_side_file_is_no_other_file_of_the_command(made, capsys, index) -> None:
    before = contents(made["model"].parent)
    named = {Path(word) for word in map(str, commands(made, "x")[index][1:]) if Path(word).exists()}
    assert named and made["lora"] not in named
    for path in named:
        assert run(*commands(made, path)[index]) == 2
        assert f"{path}: that is the file" in capsys.readouterr().err
    assert contents(made["model"].parent) == before


def test_other_spellings_and_links_are_seen_through(made, capsys, monkeypatch) -> None:
    folder = made["model"].parent
    monkeypatch.chdir(folder)
    hard, soft = folder / "hard.json", folder / "soft.json"
    os.link(made["model"], hard)
    spellings = [f"../{folder.name}/model.safetensors", hard]
    try:
        soft.symlink_to(made["model"])
        spellings.append(soft)
    except OSError:
        pass  # Windows, without the right to make links
    before = contents(folder)
    for side in spellings:
        assert run("quantize", "model.safetensors", "--overwrite", "--report", side) == 2
        assert "that is the file SRC names" in capsys.readouterr().err
    assert contents(folder) == before


def test_a_report_that_is_the_result(made, capsys) -> None:
    out = made["model"].with_name("out.safetensors")
    assert run("quantize", made["model"], out, "--report", out) == 2
    assert "that is the file DST names" in capsys.readouterr().err
    default = made["model"].with_name("model-nvfp4.safetensors")
    assert run("quantize", made["model"], "--format", "nvfp4", "--report", default) == 2
    lora = out.with_name("out_lora.safetensors")
    assert run("quantize", made["model"], out, "--error-lora", "--report", lora) == 2
    assert "--error-lora" in capsys.readouterr().err
    assert run("budget", made["model"], "--bits", 12, "--save", "x", "--chart", "x") == 2
    assert not out.exists() and not default.exists() and not lora.exists()


def test_a_shard_of_the_source_is_the_source(made, capsys) -> None:
    folder = made["model"].parent / "shards"
    folder.mkdir()
    shard = made["model"].rename(folder / "model-1.safetensors")
    weights = {f"{x}.{y}": shard.name for x in ("one", "two") for y in ("weight", "bias")}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    for src in (folder, index):
        for side in (shard, index):
            assert run("plan", src, "--template", side) == 2
            assert "that is the file SRC names" in capsys.readouterr().err
            assert run("quantize", src, side, "--overwrite") == 1
    assert json.loads(index.read_text())["weight_map"] == weights


def test_an_existing_file_is_replaced_where_that_is_meant(made, capsys) -> None:
    folder = made["model"].parent
    notes, picture = folder / "notes.json", folder / "old.PNG"
    notes.write_text("precious")
    out = folder / "out.safetensors"
    assert run("quantize", made["model"], out, "--report", notes) == 1
    assert "exists: give another name, or --overwrite" in capsys.readouterr().err
    assert run("plan", made["model"], "--template", notes) == 1
    for words in (("inspect", made["fp8"], "--chart"),
                  ("compare", made["model"], made["fp8"], "--picture")):  # fmt: skip
        assert run(*words, notes) == 1
        assert "exists, and its name does not end in .png" in capsys.readouterr().err
        picture.write_text("old")
        assert run(*words, picture) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert notes.read_text() == "precious" and not out.exists()
    assert run("quantize", made["model"], out, "--report", notes, "--overwrite") == 0
    assert json.loads(notes.read_text("utf-8"))["quantized"] == 2
    assert run("quantize", made["model"], out, "--report", made["lora"], "--overwrite") == 2
    assert "named as a model" in capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("index", range(len(COMMANDS)), ids=COMMANDS)
def test_what_cannot_be_written_shows_before_the_work(made, capsys, index, monkeypatch) -> None:
    folder = made["model"].parent
    (folder / "folder").mkdir()
    before = sorted(folder.iterdir())
    sides = {
        folder / "folder": "that is a folder",
        folder / "none" / "x.json": "there is no folder",
        made["recipe"] / "x.json": "there is no folder",
        folder / ("x" * 300): "cannot be written there",
    }
    for side, message in sides.items():
        assert run(*commands(made, side)[index]) == 2
        said = capsys.readouterr()
        assert message in said.err and not said.out
    monkeypatch.setattr("roundsmith.cli._files.create_partial", _refused)
    assert run(*commands(made, folder / "x.json")[index]) == 2
    assert "Permission denied" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def _refused(path: Path) -> Path:
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.skipif(os.name == "nt", reason="there are no such files")
def test_a_device_is_not_replaced(made, capsys) -> None:
    pipe = made["model"].with_name("pipe.json")
    os.mkfifo(pipe)
    assert run("quantize", made["model"], "--report", pipe, "--overwrite") == 2
    assert "a device or a pipe" in capsys.readouterr().err


def test_a_report_that_fails_after_all_is_a_failure_and_the_summary_is_there(
    made, capsys, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("roundsmith.cli._files.publish", full)
    out, report = (made["model"].with_name(name) for name in ("out.safetensors", "r.json"))
    assert run("quantize", made["model"], out, "--report", report) == 1
    said = capsys.readouterr()
    assert f"cannot write {report}: No space left" in said.err and "2 × float8" in said.out
    assert out.exists() and not report.exists()
    assert not list(out.parent.glob(".r.json*"))


@pytest.mark.parametrize("flag", ["calibration", "recipe", "config", "scales", "lora"])
def test_a_destination_that_is_an_input(made, capsys, flag) -> None:
    """With --overwrite too: what is read would be gone."""
    model, fp8 = made["model"], made["fp8"]
    recipe = ("--recipe", made["recipe"], "--layer-config", made["config"],
              "--input-scale", "imported", "--input-scales", made["scales"])  # fmt: skip
    words: dict[str, list[list[object]]] = {
        "calibration": [
            ["quantize", model, made[flag], "--calibration", made[flag]],
            ["quantize", model, made[flag], "--calibration", made[flag], *recipe],
            ["calibrate", fp8, made[flag], "--calibration", made[flag]],
            ["scales", fp8, made[flag], "--calibration", made[flag]],
            ["error-lora", model, fp8, made[flag], "--calibration", made[flag]],
        ],
        "recipe": [["quantize", model, made[flag], *recipe]],
        "config": [["quantize", model, made[flag], *recipe]],
        "scales": [
            ["quantize", model, made[flag], *recipe],
            ["calibrate", fp8, made[flag], "--scales", made[flag]],
            ["scales", fp8, made[flag], "--import", made[flag]],
        ],
        "lora": [["calibrate", fp8, made[flag], "--lora", made["scales"], "--lora", made[flag]]],
    }
    before = contents(model.parent)
    for line in words[flag]:
        assert run(*line, "--overwrite") == 1
        error = capsys.readouterr().err
        assert f"{made[flag]} is the file --" in error and "choose another destination" in error
    assert contents(model.parent) == before


def test_default_destinations_are_looked_at_too(made, capsys) -> None:
    for name, words in (
        ("model_lora", ["quantize", made["model"], made["model"].with_name("model"),
                        "--error-lora", 4]),
        ("fp8-calibrated", ["calibrate", made["fp8"]]),
        ("fp8-scaled", ["scales", made["fp8"]]),
        ("fp8_lora", ["error-lora", made["model"], made["fp8"]]),
    ):  # fmt: skip
        seen = made["calibration"].with_name(f"{name}.safetensors")
        seen.write_bytes(made["calibration"].read_bytes())
        assert run(*words, "--calibration", seen, "--overwrite") == 1
        assert "is the file --calibration names" in capsys.readouterr().err
        assert seen.read_bytes() == made["calibration"].read_bytes()


def test_hybrid_over_the_scales_it_imports(made, capsys) -> None:
    words = ("hybrid", made["model"], made["fp8"], "--import", made["fp8"], "--overwrite")
    assert run(*words) == 1
    assert "is the file --import names" in capsys.readouterr().err


def test_the_demo_wants_a_folder(made, capsys) -> None:
    assert run("demo", "--output", made["recipe"]) == 2
    assert "that is a file" in capsys.readouterr().err
