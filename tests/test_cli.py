"""The command line: what it prints, what it leaves, what it exits with."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from roundsmith.cli import main
from roundsmith.cli._bar import Bar


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {f"layers.{i}.fc.weight": torch.randn(256, 256).bfloat16() for i in range(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_quantize_names_the_file_by_itself(model: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["quantize", str(model), "--format", "nvfp4"]) == 0
    made = model.with_name("model-nvfp4.safetensors")
    assert made.exists()
    assert "3 × nvfp4" in capsys.readouterr().out
    assert main(["quantize", str(model), "--format", "nvfp4"]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["quantize", str(model), "--format", "nvfp4", "--overwrite"]) == 0


def test_plan_and_quantize_agree_to_the_byte(model: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--format", "int8", "--convrot", "64", "--exclude", r"\.1\.", "--fallback", "mxfp8"]
    assert main(["plan", str(model), *flags, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    out = model.with_name("out.safetensors")
    assert main(["quantize", str(model), str(out), *flags, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert plan["size"] == out.stat().st_size
    stored = {x["name"]: x["stored_as"] for x in report["layers"]}
    assert stored["layers.0.fc"] == "int8_tensorwise row convrot 64"
    assert stored["layers.1.fc"] == "mxfp8"
    assert main(["plan", str(model)]) == 0
    assert "the file would take" in capsys.readouterr().out


def test_a_folder_as_source(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert main(["quantize", ".", "--format", "nvfp4"]) == 0
    made = model.parent.with_name(f"{model.parent.name}-nvfp4.safetensors")
    assert made.exists()
    made.unlink()


def test_inspect(model: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["quantize", str(model), "--format", "int8_lodewise"]) == 0
    capsys.readouterr()
    made = str(model.with_name("model-int8_lodewise.safetensors"))
    assert main(["inspect", made]) == 0
    text = capsys.readouterr().out
    assert "int8_lodewise" in text
    assert "loads with: Roundsmith's loader nodes" in text
    assert main(["inspect", made, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stock"] is False
    assert len(found["layers"]) == 3


def test_report_and_table(model: Path, capsys: pytest.CaptureFixture) -> None:
    saved = model.with_name("report.json")
    assert main(["quantize", str(model), "--table", "--report", str(saved)]) == 0
    assert "layers.2.fc" in capsys.readouterr().out
    assert json.loads(saved.read_text(encoding="utf-8"))["quantized"] == 3


def test_a_recipe_file_and_flags_over_it(model: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = model.with_name("recipe.json")
    recipe.write_text('{"format": "int8_tensorwise", "scaling": "tensor"}')
    assert main(["plan", str(model), "--recipe", str(recipe), "--json"]) == 0
    tensors = json.loads(capsys.readouterr().out)["tensors"]
    assert tensors[0]["stored_as"] == "int8_tensorwise tensor"


def test_a_recipe_file_that_is_no_text(model: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = model.with_name("recipe.json")
    recipe.write_bytes("{}".encode("utf-16"))
    assert main(["plan", str(model), "--recipe", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert f"{recipe} is not a recipe" in error and "UTF-8" in error


@pytest.mark.parametrize("command", ["quantize", "plan"])
def test_settings_of_a_rounding_that_nothing_is_rounded_by(
    model: Path, capsys: pytest.CaptureFixture, command: str
) -> None:
    config = model.with_name("config.json")
    config.write_text('{"1.fc": {"format": "nvfp4", "rounding": "calibrated"}}')
    recipe = model.with_name("recipe.json")
    recipe.write_text(
        '{"rounding": "nearest", "rules": [{"match": "1.fc", "rounding": "calibrated"}]}'
    )
    passes, learned = ("--calibrated", "passes=1"), ("--learned", "iterations=2")
    for flags, name in (
        ((*passes, "--rounding", "nearest"), "calibrated"),
        ((*passes, "--rounding", "learned"), "calibrated"),
        ((*learned, "--rounding", "calibrated"), "learned"),
        (learned, "learned"),
        (passes, None),
        ((*passes, "--rounding", "calibrated"), None),
        ((*passes, "--rounding", "nearest", "--layer-config", str(config)), None),
        ((*passes, "--recipe", str(recipe)), None),
        ((*learned, "--recipe", str(recipe)), "learned"),
    ):
        words = [command, str(model), *(["--overwrite"] if command == "quantize" else [])]
        assert main([*words, *flags]) == 0
        error = capsys.readouterr().err
        warned = [x for x in ("calibrated", "learned") if f"warning: --{x} " in error]
        assert warned == [name] * (name is not None), flags
        assert name is None or f"no layer is rounded so: give --rounding {name}" in error


def test_ctrl_c_says_what_there_is(
    model: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = model.with_name("model-nvfp4.safetensors.roundsmith-layers")

    def interrupted(bar: Bar, _: object) -> None:
        if bar.silent or any(kept.glob("*.layer.safetensors")):
            raise KeyboardInterrupt

    words = ["quantize", str(model), "--format", "nvfp4", "--rounding", "learned"]
    with monkeypatch.context() as patched:
        patched.setattr(Bar, "__call__", interrupted)
        assert main([*words, "--json"]) == 1
        assert "roundsmith-layers" not in capsys.readouterr().err and not kept.exists()
        assert main([*words, "--learned", "iterations=1"]) == 1
    error = capsys.readouterr().err
    assert "nothing unfinished was left under the destination's name" in error
    assert f"{kept}: the same command goes on from there; delete the folder" in error
    assert main([*words, "--learned", "iterations=1"]) == 0
    assert not kept.exists()


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--format", "fp7"], 2, "unknown format 'fp7'"),
        (["--convrot", "many"], 2, "give a group size or auto"),
        (["--convrot", "²"], 2, "--convrot '²': give a group size or auto"),
        (["--preset", "nobody"], 2, "unknown preset 'nobody'"),
        (["--device", "tpu9"], 2, "device 'tpu9' is not usable"),
        (["--device", "meta"], 2, "rounding runs on cpu or cuda"),
        (["--report", "nowhere/report.json"], 2, "there is no folder nowhere"),
    ],
)
def test_bad_settings(
    model: Path, capsys: pytest.CaptureFixture, flags: list[str], status: int, message: str
) -> None:
    assert main(["quantize", str(model), str(model.with_name("o")), *flags]) == status
    assert message in capsys.readouterr().err
    assert not model.with_name("o").exists()


def test_files_that_are_not_models(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    for src, message in (("a.ckpt", "convert it first"), ("none", "none")):
        for command in ("quantize", "plan", "inspect"):
            assert main([command, str(tmp_path / src)]) == 1
            error = capsys.readouterr().err
            assert str(tmp_path / src) in error
            assert message in error


def test_formats_are_listed(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        main(["quantize", "--list-formats"])
    assert left.value.code == 0
    assert "nvfp4" in capsys.readouterr().out


def test_bad_usage_exits_with_2(capsys: pytest.CaptureFixture) -> None:
    for argv in ([], ["nothing"], ["quantize"], ["quantize", "a", "--seed", "x"]):
        with pytest.raises(SystemExit) as left:
            main(argv)
        assert left.value.code == 2
    capsys.readouterr()
