"""Folders and indexes: which files make up a checkpoint, and what an index may not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from roundsmith.checkpoints import Checkpoint
from roundsmith.errors import CheckpointError


def index(folder: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    save_file({"b": torch.ones(3), "a": torch.zeros(2)}, tmp_path / "one.safetensors")
    save_file({"c": torch.full((4,), 5)}, tmp_path / "two.safetensors", metadata={"k": "v"})
    return index(tmp_path, {"a": "one.safetensors", "c": "two.safetensors", "b": "one.safetensors"})


def test_shards_are_one_checkpoint(shards: Path) -> None:
    for path in (shards, shards.parent):
        with Checkpoint.open(path) as checkpoint:
            assert checkpoint.path == shards
            assert [file.name for file in checkpoint.files] == [
                "one.safetensors",
                "two.safetensors",
            ]
            assert list(checkpoint.tensors) == ["a", "b", "c"]
            assert checkpoint.tensors["c"].file.name == "two.safetensors"
            assert checkpoint.read("c").tolist() == [5, 5, 5, 5]
            assert checkpoint.read("b").tolist() == [1, 1, 1]
            assert checkpoint.metadata == {"k": "v"}


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards.parent / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json.*'c' in two\.safetensors.*not there"):
        Checkpoint.open(shards)


def test_a_shard_without_a_promised_tensor_is_named(shards: Path) -> None:
    save_file({"a": torch.zeros(2)}, shards.parent / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"index\.json.*'b' in one\.safetensors.*lacks it"):
        Checkpoint.open(shards)


def test_a_damaged_shard_is_named(shards: Path) -> None:
    (shards.parent / "two.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"two\.safetensors is empty"):
        Checkpoint.open(shards)


def test_a_tensor_in_two_shards_is_refused(shards: Path) -> None:
    save_file({"c": torch.ones(1), "a": torch.ones(1)}, shards.parent / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"'a' is in two shards.*one.*two\.safetensors"):
        Checkpoint.open(shards)


def test_a_tensor_the_index_forgets_is_read_and_noted(shards: Path) -> None:
    save_file({"c": torch.ones(1), "d": torch.ones(1)}, shards.parent / "two.safetensors")
    with Checkpoint.open(shards) as checkpoint:
        assert "d" in checkpoint.tensors
        assert any("'d' of two.safetensors" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "place",
    [
        "../one.safetensors",
        "sub/../../one.safetensors",
        "/etc/passwd",
        "C:\\models\\one.safetensors",
        "C:one.safetensors",
        "..\\one.safetensors",
        "\\\\host\\share\\one.safetensors",
        "",
        ".",
        "one\0.safetensors",
        5,
        None,
        ["one.safetensors"],
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(shards: Path, place: object) -> None:
    index(shards.parent, {"a": place})
    with pytest.raises(CheckpointError, match=r"index\.json places tensor 'a' in"):
        Checkpoint.open(shards)


def test_shards_may_lie_below_the_index(shards: Path) -> None:
    below = shards.parent / "below"
    below.mkdir()
    save_file({"x": torch.ones(1)}, below / "three.safetensors")
    with Checkpoint.open(index(shards.parent, {"x": "below/three.safetensors"})) as checkpoint:
        assert checkpoint.read("x").item() == 1


@pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "{"])
def test_an_index_that_is_none_is_refused(shards: Path, text: str) -> None:
    shards.write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json.*(weight_map|not valid JSON)"):
        Checkpoint.open(shards)


def test_a_folder_must_say_which_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors"):
        Checkpoint.open(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    (tmp_path / "._one.safetensors").write_bytes(b"macOS leaves these")
    assert Checkpoint.open(tmp_path).path.name == "one.safetensors"
    save_file({"a": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"2 \.safetensors.*one\.safetensors, two\.safet"):
        Checkpoint.open(tmp_path)
    index(tmp_path, {"a": "one.safetensors"})
    assert list(Checkpoint.open(tmp_path).tensors) == ["a"]
    index(tmp_path, {"a": "two.safetensors"}, "model.fp16.safetensors.index.json")
    with pytest.raises(CheckpointError, match="2 indexes"):
        Checkpoint.open(tmp_path)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):
        Checkpoint.open(tmp_path / "gone.safetensors")
