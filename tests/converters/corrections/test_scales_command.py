"""Input scales from statistics to files and back, through the command line."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from roundsmith.cli import main

from .conftest import SHAPES

SUFFIX = ".input_scale"


def run(*words):
    return main([str(word) for word in words])


def scales(path):
    """The input scales of a file, by layer."""
    return {
        name.removesuffix(SUFFIX): float(tensor)
        for name, tensor in load_file(path).items()
        if name.endswith(SUFFIX)
    }


def test_calibrated_scales_from_quantizing_to_another_file(model, capsys):
    """Measured while quantizing, set later, exported and imported: the same scales each time."""
    folder = model.folder
    statistics = model.calibration.save(folder / "statistics.safetensors")
    fp8 = ("--format", "float8_e4m3fn", "--preset", "none", "--rounding", "nearest")
    made = folder / "made.safetensors"
    measured = ("--input-scale", "calibrated", "--calibration", statistics)
    assert run("quantize", model.original, made, *fp8, *measured) == 0
    found = scales(made)
    assert {*found} == {*SHAPES} and all(value > 0 for value in found.values())

    plain, later = folder / "plain.safetensors", folder / "later.safetensors"
    assert run("quantize", model.original, plain, *fp8, "--input-scale", "none") == 0
    assert scales(plain) == {}
    same = ("--calibration", statistics, "--percentile", 100)
    assert run("scales", plain, later, *same) == 0
    assert scales(later) == pytest.approx(found)
    again = folder / "again.safetensors"
    assert run("scales", later, again, *same) == 0
    assert again.read_bytes() == later.read_bytes()

    exported = folder / "exported.json"
    assert run("scales", made, "--export", exported) == 0
    assert json.loads(exported.read_text()) == pytest.approx(found)
    taken = folder / "taken.safetensors"
    imported = ("--input-scale", "imported", "--input-scales", exported)
    assert run("quantize", model.original, taken, *fp8, *imported) == 0
    assert scales(taken) == pytest.approx(found)


def test_a_percentile_of_the_inputs(model):
    statistics = model.calibration.save(model.folder / "statistics.safetensors")
    words = ("--format", "float8_e4m3fn", "--preset", "none", "--rounding", "nearest",
             "--input-scale", "calibrated", "--calibration", statistics)  # fmt: skip
    usual, largest = model.folder / "usual.safetensors", model.folder / "largest.safetensors"
    assert run("quantize", model.original, largest, *words) == 0
    assert run("quantize", model.original, usual, *words, "--input-scale-percentile", 99) == 0
    for layer, scale in scales(largest).items():
        record = model.calibration.record(layer)
        assert scale == pytest.approx(record.percentile(100) / 448)
        assert scales(usual)[layer] == pytest.approx(record.percentile(99) / 448)
        assert scales(usual)[layer] < scale


def test_calibrated_scales_without_statistics(model, capsys):
    out = model.folder / "out.safetensors"
    words = ("--format", "float8_e4m3fn", "--input-scale", "calibrated")
    assert run("quantize", model.original, out, *words) == 0
    assert "no calibration was given: layers have no input scales" in capsys.readouterr().err
    assert scales(out) == {}
