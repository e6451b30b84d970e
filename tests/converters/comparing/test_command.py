"""``roundsmith compare``: what it prints and what it exits with."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from roundsmith import Recipe, quantize_file
from roundsmith.cli import compare as command
from roundsmith.converters.calibration import capture
from roundsmith.errors import QualityError, RecipeError


@pytest.fixture
def files(tmp_path):
    """A model, its INT8 file and a calibration."""
    torch.manual_seed(1)
    model = nn.ModuleDict({name: nn.Linear(128, 128) for name in ("one", "two", "three")})
    paths = [tmp_path / f"{name}.safetensors" for name in ("model", "int8", "calibration")]
    save_file(dict(model.state_dict()), paths[0])
    quantize_file(paths[0], paths[1], Recipe(format="int8_tensorwise", preset=None))
    with capture(model) as captured:
        for layer in model.values():
            layer(torch.randn(300, 128))
    captured.save(paths[2])
    return [str(path) for path in paths]


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    args = parser.parse_args(["compare", *map(str, arguments)])
    return args.run(args)


def test_table(files, capsys):
    assert run(*files[:2], "--worst", 2) == 0
    printed = capsys.readouterr().out
    assert "... and 1 better ones" in printed and "give a calibration" in printed


def test_both_scores_as_json(files, capsys):
    assert run(*files[:2], "--calibration", files[2], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["layers"]) == 3
    assert all(30 < x["executed"] < x["exact"] < 60 for x in found["layers"])
    assert found["snr"] == pytest.approx(found["mean_executed"])


def test_below_the_threshold_everything_is_printed_and_it_fails(files, capsys):
    assert run(*files[:2], "--min-snr", 20) == 0
    capsys.readouterr()
    with pytest.raises(QualityError, match=r"below 90 dB.*worst layers: (one|two|three) \("):
        run(*files[:2], "--min-snr", 90, "--json")
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 3


def changed(path, **tensors):
    """A file beside ``path`` with other tensors; None takes one out."""
    state = {**load_file(path), **{name.replace("_", "."): t for name, t in tensors.items()}}
    made = Path(path).with_name("changed.safetensors")
    save_file({name: t for name, t in state.items() if t is not None}, made)
    return made


def test_a_layer_that_is_missing_fails(files, capsys):
    made = changed(files[0], two_weight=None)
    for calibration in ([], ["--calibration", files[2]]):
        assert run(files[0], made, *calibration) == 0
        with pytest.raises(QualityError, match=r"reaches 20 dB, but .*1 layers.*missing.*: two"):
            run(files[0], made, *calibration, "--min-snr", 20)
        assert "only in the reference: two" in capsys.readouterr().out
    assert run(made, files[0], "--min-snr", 20) == 0, "more than the reference has is no loss"


@pytest.mark.parametrize("name", ["two_weight", "two_bias"])
def test_nan_fails(files, capsys, name):
    """Of layers whose outputs were not measured, and of other tensors, too."""
    tensor = load_file(files[0])[name.replace("_", ".")].clone()
    tensor.reshape(-1)[3] = math.nan
    made = changed(files[0], **{name: tensor})
    model = nn.ModuleDict({name: nn.Linear(128, 128) for name in ("one", "two", "three")})
    model.load_state_dict(load_file(files[0]))
    with capture(model, layers="one") as captured:
        model["one"](torch.randn(300, 128))
    Path(files[2]).unlink()
    captured.save(files[2])
    for calibration in ([], ["--calibration", files[2]]):
        with pytest.raises(QualityError, match=r"NaN or Inf.*two"):
            run(files[0], made, *calibration, "--min-snr", -1000)


def test_a_verdict_on_weights_says_what_it_is_worth(files, capsys):
    with pytest.raises(QualityError, match="no calibration given; calibrated rounding lowers this"):
        run(*files[:2], "--min-snr", 90)
    assert run(*files[:2], "--min-snr", 20) == 0
    assert "calibrated rounding lowers this on purpose" in capsys.readouterr().out
    assert run(*files[:2], "--min-snr", 20, "--calibration", files[2]) == 0
    assert "on purpose" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "lowers on purpose" in said and "Compare Models node" in said


def test_a_picture(files, tmp_path):
    assert run(*files[:2], "--picture", tmp_path / "chart.png") == 0
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RecipeError, match="no folder"):
        run(*files[:2], "--picture", tmp_path / "nowhere" / "chart.png")


@pytest.mark.parametrize("flags", [("--min-snr", "nan"), ("--min-snr", "x"), ("--worst", "0")])
def test_bad_numbers_are_bad_usage(files, flags, capsys):
    with pytest.raises(SystemExit) as told:
        run(*files[:2], *flags)
    assert told.value.code == 2 and "is not a number of" in capsys.readouterr().err
