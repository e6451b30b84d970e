"""The commands edit, migrate, scales and inspect: what they print, leave, and exit with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from roundsmith import dev
from roundsmith.cli import main

PEER = dev.ROOT / "tests" / "peer" / "files"


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes((PEER / "fp8_tensor.safetensors").read_bytes())
    return path


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_edit(fp8: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--layers", "img_attn", "--set", "a=1", "--set", "'b': True", "--remove", "orig_dtype")
    assert run("edit", fp8, *words, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "torch.bfloat16  –" in shown and "nothing was written" in shown
    assert sorted(fp8.parent.iterdir()) == [fp8]
    assert run("edit", fp8, *words, "--json") == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert len(changes) == 6 and {x["what"] for x in changes} == {"a", "b", "orig_dtype"}
    made = fp8.with_name("model-edited.safetensors")
    assert run("edit", made, *words, "--in-place") == 0
    assert "nothing to change" in capsys.readouterr().out
    assert run("edit", fp8, *words) == 1
    assert "exists" in capsys.readouterr().err
    assert run("edit", fp8, fp8, *words, "--overwrite") == 1
    assert "source itself" in capsys.readouterr().err
    assert run("edit", fp8, *words, "--overwrite", "--table") == 0
    assert "header and comfy_quant" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--set", "nonsense"], 2, "--set: '{nonsense}' cannot be read"),
        (["--set", "a=1", "--set", "a=2"], 2, "--set: 'a' is given twice"),
        (["--set", "a=1", "--remove", "a"], 2, "in set and in remove"),
        (["--layers", "("], 2, "bad regular expression"),
        (["--set", "format=fp7"], 2, "unknown format 'fp7'"),
        (["--set", "format=mxfp8"], 1, "its tensors are float8_e4m3fn"),
        (["--layers", "nowhere"], 1, "none of the 5 quantized layers"),
    ],
)
def test_bad_edits(fp8: Path, capsys: pytest.CaptureFixture, words, status, message) -> None:
    before = fp8.read_bytes()
    assert run("edit", fp8, *words) == status
    assert message in capsys.readouterr().err
    assert fp8.read_bytes() == before and list(fp8.parent.iterdir()) == [fp8]


def test_migrate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    old = PEER / "legacy_fp8.safetensors"
    assert run("migrate", old, "--dry-run") == 0
    assert "the file is: legacy fp8_scaled" in capsys.readouterr().out
    new, back = tmp_path / "new.safetensors", tmp_path / "back.safetensors"
    assert run("migrate", old, new) == 0
    assert "blocks.2.row.comfy_quant" in load_file(new)
    assert run("migrate", new, back, "--to", "fp8_scaled", "--marker", 0) == 0
    assert load_file(back)["scaled_fp8"].shape == (0,)
    assert run("migrate", old, tmp_path / "x", "--hp-filter", "row") == 1
    assert "hp_filter" in capsys.readouterr().err
    assert run("migrate", old, tmp_path / "x", "--marker", 2) == 2
    assert "comfy_quant files have none" in capsys.readouterr().err
    assert run("migrate", new, "--in-place", "--json") == 0
    assert json.loads(capsys.readouterr().out)["changes"] == []


def test_scales(fp8: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("scales", fp8, "--constant", 0.5, "--layers", "img_attn") == 0
    made = fp8.with_name("model-scaled.safetensors")
    assert "2 of 5 input scales changed" in capsys.readouterr().out
    state = made.read_bytes()
    assert run("scales", made, "--constant", 0.5, "--layers", "img_attn", "--in-place") == 0
    assert "0 of 5" in capsys.readouterr().out and made.read_bytes() == state
    assert run("scales", made, "--export") == 0
    exported = fp8.with_name("model-scaled-input-scales.json")
    assert set(json.loads(exported.read_text("utf-8")).values()) == {0.5}
    assert run("scales", made, "--export") == 1
    assert "exists" in capsys.readouterr().err
    assert run("scales", made, "--export", "--dry-run", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["scales"]) == 2
    out = fp8.with_name("imported.safetensors")
    for source in (exported, made):
        assert run("scales", fp8, out, "--import", source, "--overwrite") == 0
        for name, tensor in load_file(made).items():
            if name.endswith("input_scale"):
                assert torch.equal(load_file(out)[name], tensor)
    capsys.readouterr()
    assert run("scales", fp8, "--weight", "--dry-run") == 0
    assert "equal to the weight scale" in capsys.readouterr().out
    assert run("scales", fp8, "--export") == 1
    assert "no input scales" in capsys.readouterr().err


def test_layers_that_are_not_there(fp8: Path, capsys: pytest.CaptureFixture) -> None:
    for command in ("scales", "calibrate"):
        assert run(command, fp8, "--constant", 0.5, "--layers", "nowhere") == 1
        error = capsys.readouterr().err
        assert "layers 'nowhere': none of the 5 quantized layers" in error and "img_attn" in error
    assert list(fp8.parent.iterdir()) == [fp8]


@pytest.mark.parametrize("value", [0, -1, "nan", 1e9])
def test_scales_that_are_none(fp8: Path, capsys: pytest.CaptureFixture, value: object) -> None:
    assert run("scales", fp8, f"--constant={value}") == 2
    assert "from 1e-08 to 100000" in capsys.readouterr().err


def test_export_takes_no_destination(fp8: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("scales", fp8, "x.safetensors", "--export", "y.json") == 2
    assert "leave out DST" in capsys.readouterr().err


def test_exported_scales_come_back_to_the_last_bit(fp8: Path) -> None:
    tensors = load_file(fp8)
    values = torch.rand(5)
    layers = sorted(n.removesuffix(".weight_scale") for n in tensors if n.endswith("weight_scale"))
    for layer, value in zip(layers, values, strict=True):
        tensors[f"{layer}.input_scale"] = value.clone()
    save_file(tensors, fp8)
    assert run("scales", fp8, "--export", fp8.with_name("s.json")) == 0
    out = fp8.with_name("out.safetensors")
    source = PEER / "fp8_tensor.safetensors"
    assert run("scales", source, out, "--import", fp8.with_name("s.json")) == 0
    found = load_file(out)
    assert all(torch.equal(found[f"{x}.input_scale"], tensors[f"{x}.input_scale"]) for x in layers)


def test_inspect_draws_and_scores(fp8: Path, capsys: pytest.CaptureFixture) -> None:
    chart = fp8.with_name("chart.png")
    assert run("inspect", fp8, "--chart", chart, "--deep") == 0
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert "est. SNR" in capsys.readouterr().out
    assert run("inspect", fp8, "--original", fp8, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reference"] == str(fp8)
    assert run("inspect", fp8, "--chart", fp8.parent / "none" / "c.png") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_hybrid(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.safetensors"
    assert run("hybrid", PEER / "mxfp8.safetensors", out, "--scalar", "tight") == 0
    assert "layers made hybrid: 5 of 5" in capsys.readouterr().out
    assert run("hybrid", out, "--scalar", "tight", "--in-place", "--json") == 0
    assert json.loads(capsys.readouterr().out)["changes"] == []
    assert run("hybrid", out, "--import", PEER / "fp8_tensor.safetensors", "--in-place") == 0
    scale = load_file(PEER / "fp8_tensor.safetensors")["img_in.weight_scale"]
    assert torch.equal(load_file(out)["img_in.weight_scalar"], scale)
    assert run("hybrid", out, "--scalar", "tight", "--import", out, "--in-place") == 2
    assert "contradict" in capsys.readouterr().err
    assert run("hybrid", PEER / "fp8_tensor.safetensors", "--dry-run") == 1
    assert "no MXFP8 layers" in capsys.readouterr().err
