"""What no file says: how bitsandbytes' form is named inside, and tables that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as plain_load
from safetensors.torch import save_file

from roundsmith.checkpoints import decode_conf
from roundsmith.converters import Recipe, load_file, quantize_file
from roundsmith.converters.editing import EditOptions, edit_file
from roundsmith.converters.inspecting import inspect_file
from roundsmith.converters.migrating import MigrateOptions, migrate_file
from roundsmith.converters.patching import Destination
from roundsmith.errors import RoundsmithError

NF4 = Recipe(format="bnb_nf4", rounding="nearest", preset=None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    save_file({"fc.weight": torch.randn(128, 256)}, path)
    return path


def test_a_migrated_file_does_not_say_its_old_form(source: Path, tmp_path: Path) -> None:
    """Converted from bitsandbytes' form, and kept by a later run, it stays what it became."""
    foreign, made, kept = (tmp_path / f"{name}.safetensors" for name in ("bnb", "made", "kept"))
    quantize_file(source, foreign, NF4.model_copy(update={"form": "bitsandbytes"}))
    migrate_file(foreign, Destination(made), MigrateOptions(to="comfy_quant"))
    assert "form" not in decode_conf(plain_load(made)["fc.comfy_quant"])
    quantize_file(made, kept, Recipe(preset=None, exclude=(".",)))
    assert set(plain_load(kept)) == set(plain_load(made))
    before, after = (load_file(p)["fc.weight"].dequantize() for p in (foreign, kept))
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"form": "bitsandbytes"}, "no file has it"),
        ({"quant_map": [0.0] * 16}, "not all zero"),
        ({"quant_map": [0.0, 0.5, 1.0]}, "16 finite numbers"),
        ({"shape": [8, 8]}, "[8, 8]"),
    ],
)
def test_edits_that_no_reader_takes(
    source: Path, tmp_path: Path, setting: dict[str, object], says: str
) -> None:
    made = tmp_path / "made.safetensors"
    quantize_file(source, made, NF4)
    before = made.read_bytes()
    with pytest.raises(RoundsmithError) as caught:
        edit_file(made, Destination(made, in_place=True), EditOptions(set=setting))
    assert says in str(caught.value)
    assert made.read_bytes() == before


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        (NF4, {"quant_map": [0.0] * 16}),
        (Recipe(format="asym_w4a8_int8", rounding="nearest", preset=None), {"group_size": "x"}),
    ],
    ids=["nf4", "w4a8"],
)
def test_a_damaged_file_is_named_and_inspected(
    source: Path, tmp_path: Path, recipe: Recipe, change: dict[str, object]
) -> None:
    made, bad = tmp_path / "made.safetensors", tmp_path / "bad.safetensors"
    quantize_file(source, made, recipe)
    tensors = plain_load(made)
    conf = {**decode_conf(tensors["fc.comfy_quant"]), **change}
    text = json.dumps(conf).encode()
    tensors["fc.comfy_quant"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    save_file(tensors, bad)
    with pytest.raises(RoundsmithError):
        load_file(bad)["fc.weight"].dequantize()
    assert "unreadable" in inspect_file(bad).json()
