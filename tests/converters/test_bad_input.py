"""What goes wrong around a conversion: a message names it and the way out, the source stays."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as plain_load
from safetensors.torch import save_file

from roundsmith import Recipe, plan_file, quantize_file
from roundsmith.converters import Progress, Rule
from roundsmith.errors import CheckpointError, DestinationExistsError, RecipeError

FAST = Recipe(preset=None, rounding="nearest")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    save_file({f"blocks.{i}.fc.weight": torch.randn(64, 64) for i in range(4)}, path)
    return path


def test_a_source_that_is_cut_short_midway(source: Path, tmp_path: Path) -> None:
    """The layer it ended in is named, and no half file is left."""
    def cut(progress: Progress) -> None:
        if progress.index == 2:
            os.truncate(source, source.stat().st_size // 2)

    with pytest.raises(CheckpointError, match=r"ended inside tensor 'blocks\.\d.*start again"):
        quantize_file(source, tmp_path / "out.safetensors", FAST, progress=cut)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_source_that_is_changed_midway(how: str, source: Path, tmp_path: Path) -> None:
    """What was read is of two states, or of one that is no longer: an error, and no file."""
    other = tmp_path / "other.safetensors"
    other.write_bytes(source.read_bytes())

    def change(progress: Progress) -> None:
        if other.exists() and how == "replaced":
            os.replace(other, source)
        elif other.exists():
            other.unlink()
            with source.open("r+b") as file:
                file.seek(-4, os.SEEK_END)
                file.write(b"\1\2\3\4")
            os.utime(source, ns=(0, 0))  # file systems may count time coarsely

    with pytest.raises(CheckpointError, match=r"source\.safetensors was changed by"):
        quantize_file(source, tmp_path / "out.safetensors", FAST, progress=change)
    assert list(tmp_path.iterdir()) == [source]


def test_a_source_that_vanishes_before_it_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roundsmith.converters import engine

    plan = engine.make_plan

    def gone(*args: object) -> object:
        source.unlink()
        return plan(*args)

    monkeypatch.setattr(engine, "make_plan", gone)
    with pytest.raises(CheckpointError, match=r"cannot read tensor .*source\.safetensors"):
        quantize_file(source, tmp_path / "out.safetensors", FAST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existed", [False, True])
def test_two_runs_to_one_destination(source: Path, tmp_path: Path, existed: bool) -> None:
    """The file is one run's, whole; where neither may overwrite, the other is told."""
    out, before = tmp_path / "out.safetensors", source.read_bytes()
    if existed:
        out.write_bytes(b"old")
    meet = threading.Barrier(2, timeout=60)
    failures: list[Exception] = []
    met = threading.local()

    def wait(_: Progress) -> None:
        if not getattr(met, "done", False):
            met.done = True
            meet.wait()

    def work(format: str) -> None:
        recipe = Recipe(format=format, preset=None, rounding="nearest")
        try:
            quantize_file(source, out, recipe, progress=wait, overwrite=existed)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("fp8", "int8")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == (0 if existed else 1)
    for error in failures:
        assert isinstance(error, DestinationExistsError)
        assert str(out) in str(error) and "overwriting" in str(error)
    dtypes = {t.dtype for name, t in plain_load(out).items() if name.endswith(".weight")}
    assert len(dtypes) == 1 and dtypes <= {torch.float8_e4m3fn, torch.int8}
    assert sorted(tmp_path.iterdir()) == [out, source] and source.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": [{"match": "fc", "skip": True, "format": "nvfp4"}]},
         "rules.0: Rule: rule 'fc': skip keeps .*format would change them: leave one out"),
        ({"rules": [{"match": "fc", "skip": True, "rounding": "learned"}]}, "rule 'fc'.*rounding"),
        ({"layer_config": {"fc": {"skip": True, "format": "nvfp4"}}}, "layer_config.fc.*both skip"),
        ({"fallback": {"rounding": "nearest"}}, "fallback names no format"),
        ({"input_scale": "imported"}, "input_scales is None: imported and a file go together"),
        ({"input_scales": "s.json", "input_scale": "none"}, "is none and input_scales is s.json"),
        ({"input_scales": "s.json"}, "input_scale is auto and input_scales is s.json"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe(**settings)


def test_a_rule_behind_another_of_the_same_pattern_is_named(source: Path) -> None:
    """It can never decide; the first does, as everywhere, and the plan says so."""
    rules = (Rule(match="fc", format="nvfp4"), Rule(match="fc", format="int8"))
    plan = plan_file(source, Recipe(rules=rules, preset=None))
    assert {t.spec.format for t in plan.tensors if t.spec} == {"nvfp4"}
    (warning,) = [text for text in plan.warnings if "contradicts" in text]
    assert "rule 2 contradicts rule 1, whose pattern 'fc'" in warning and "remove one" in warning
    same = plan_file(source, Recipe(rules=(rules[0], rules[0]), preset=None))
    assert not [text for text in same.warnings if "contradicts" in text]
