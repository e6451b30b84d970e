"""The subcommands ``calibrate`` and ``error-lora``."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from roundsmith.cli import calibrate, error_lora
from roundsmith.errors import RecipeError

from .conftest import SHAPES

QKV = "double_blocks.0.img_attn.qkv"


def run(*words):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for command in (calibrate, error_lora):
        command.add(commands)
    args = parser.parse_args([str(word) for word in words])
    return args.run(args)


def test_calibrate_by_default_estimates_and_says_so(model, capsys):
    assert run("calibrate", model.quantized()) == 0
    out = model.folder / "float8_e4m3fn-calibrated.safetensors"
    assert f"{QKV}.input_scale" in load_file(out)
    said = capsys.readouterr()
    assert "no measured activations" in said.out and "4 of 4" in said.out
    assert "estimates" in said.err
    assert run("calibrate", model.quantized(), "--percentile", "100", "--seed", 1, "--overwrite",
               "--samples", 8, "--table") == 0  # fmt: skip
    assert QKV in capsys.readouterr().out


def test_calibrate_takes_the_mode_from_the_files_given(model, capsys):
    statistics = model.calibration.save(model.folder / "statistics.safetensors")
    out = model.folder / "out.safetensors"
    assert run("calibrate", model.quantized(), out, "--calibration", statistics, "--json") == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "measured"
    (model.folder / "s.json").write_text(json.dumps({QKV: 0.5}))
    run("calibrate", model.quantized(), out, "--scales", model.folder / "s.json", "--json",
        "--overwrite")  # fmt: skip
    assert json.loads(capsys.readouterr().out)["changed"] == 1
    save_file({f"{QKV}.lora_A.weight": torch.randn(2, 64)}, model.folder / "l.safetensors")
    run("calibrate", model.quantized(), out, "--lora", model.folder / "l.safetensors", "--json",
        "--overwrite")  # fmt: skip
    assert json.loads(capsys.readouterr().out)["mode"] == "lora"
    with pytest.raises(RecipeError, match="go together"):
        run("calibrate", model.quantized(), out, "--mode", "lora", "--overwrite")


def test_calibrate_with_a_constant(model):
    out = model.folder / "out.safetensors"
    for words in (("--constant", 0.25), ("--mode", "constant", "--constant", 0.25)):
        assert run("calibrate", model.quantized(), out, *words, "--overwrite") == 0
        assert float(load_file(out)[f"{QKV}.input_scale"]) == 0.25
    assert run("calibrate", model.quantized(), out, "--mode", "constant", "--overwrite") == 0
    assert float(load_file(out)[f"{QKV}.input_scale"]) == 1
    for words in (("--mode", "random"), ("--scales", model.folder / "s.json")):
        with pytest.raises(RecipeError, match="--constant and mode"):
            run("calibrate", model.quantized(), out, *words, "--constant", 0.25, "--overwrite")
    with pytest.raises(RecipeError, match="an input scale is a number from"):
        run("calibrate", model.quantized(), out, "--constant", 0, "--overwrite")


def test_modes_of_the_flag_are_those_there_are():
    from typing import get_args

    from roundsmith.converters.corrections.calibrate_options import MEANING, Mode

    assert calibrate.MODES == get_args(Mode) == tuple(MEANING)


def test_error_lora(model, capsys):
    quantized = model.quantized("nvfp4")
    statistics = model.calibration.save(model.folder / "statistics.safetensors")
    assert run("error-lora", model.original, quantized) == 0
    assert "bypass" in capsys.readouterr().out
    lora = load_file(model.folder / "nvfp4_lora.safetensors")
    assert lora[f"diffusion_model.{QKV}.lora_A.weight"].shape == (32, 64)
    out = model.folder / "out.safetensors"
    words = ("--rank", 4, "--target", "qkv", "--calibration", statistics, "--json")
    assert run("error-lora", model.original, quantized, out, *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [x["rank"] for x in found["layers"]] == [4 * ("qkv" in name) for name in SHAPES]
    assert found["output_gain"] > 0.3
    words = ("--layers", "selected", "--depth", 2, "--aspect", 3, "--table", "--overwrite")
    assert run("error-lora", model.original, quantized, out, *words) == 0
    assert "aspect ratio" in capsys.readouterr().out
