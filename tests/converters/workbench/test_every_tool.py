"""What holds for every tool that changes a file: a second run has nothing to do, and nothing that
the tool does not name is lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from roundsmith.checkpoints import Checkpoint, CheckpointWriter
from roundsmith.converters.corrections import CalibrateOptions, calibrate_file
from roundsmith.converters.editing import EditOptions, edit_file
from roundsmith.converters.hybrid import HybridOptions, make_hybrid
from roundsmith.converters.migrating import MigrateOptions, migrate_file
from roundsmith.converters.patching import Destination
from roundsmith.errors import CheckpointError

from .files import legacy, peer

EDIT = EditOptions(set={"note": "kept", "full_precision_matrix_mult": True}, remove=("orig_dtype",))
TOOLS = {
    "edit": ("fp8_tensor", lambda src, dst: edit_file(src, dst, EDIT)),
    "migrate to comfy_quant": ("legacy", lambda src, dst: migrate_file(src, dst)),
    "migrate to fp8_scaled": (
        "fp8_tensor",
        lambda src, dst: migrate_file(src, dst, MigrateOptions(to="fp8_scaled")),
    ),
    "clean": (
        "legacy",
        lambda src, dst: migrate_file(src, dst, MigrateOptions(to="same", marker=2)),
    ),
    "scales, constant": (
        "fp8_tensor",
        lambda src, dst: calibrate_file(src, dst, CalibrateOptions(mode="constant", constant=0.5)),
    ),
    "scales, random": (
        "fp8_tensor",
        lambda src, dst: calibrate_file(src, dst, CalibrateOptions(mode="random")),
    ),
    "hybrid": ("mxfp8", lambda src, dst: make_hybrid(src, dst, HybridOptions(scalar="tight"))),
}


@pytest.fixture(params=TOOLS)
def tool(request, tmp_path):
    """A tool and a file for it, with a tensor and metadata that no tool knows, and one of a dtype
    that torch has not."""
    case, run = TOOLS[request.param]
    made = legacy(tmp_path / "legacy.safetensors") if case == "legacy" else peer(case)
    path = tmp_path / "source.safetensors"
    with_strangers(made, path)
    if case == "legacy":
        made.unlink()
    return run, path


def with_strangers(made: Path, path: Path) -> None:
    """``made`` with an unknown tensor, one of an opaque dtype, and metadata."""
    with Checkpoint.open(made) as source:
        entries = {name: info.entry for name, info in source.tensors.items()}
        entries |= {"strange.table": (torch.int16, (3, 5)), "strange.packed": ("F4", (4,), 2)}
        text = {**source.metadata, "modelspec.title": "a title", "strange": "{not json"}
        with CheckpointWriter(path, entries, text) as sink:
            for name in source.tensors:
                sink.write_bytes(name, 0, source.read_bytes(name))
            sink.write("strange.table", torch.arange(15, dtype=torch.int16).reshape(3, 5))
            sink.write_bytes("strange.packed", 0, b"\x12\x34")


def raw(path: Path) -> dict[str, tuple[object, bytes]]:
    """Every tensor's entry and bytes."""
    with Checkpoint.open(path) as file:
        return {n: (info.entry, bytes(file.read_bytes(n))) for n, info in file.tensors.items()}


def test_a_second_run_changes_nothing(tool) -> None:
    """In place it writes nothing; to a new file it makes the same tensors and metadata."""
    run, source = tool
    once, twice = source.with_name("once.safetensors"), source.with_name("twice.safetensors")
    run(source, Destination(once))
    state, stat = once.read_bytes(), once.stat()
    report = run(once, Destination(in_place=True))
    said = json.loads(report.json())
    assert not said.get("changes") and not said.get("changed")
    assert once.read_bytes() == state and once.stat().st_mtime_ns == stat.st_mtime_ns
    run(once, Destination(twice))
    assert raw(twice) == raw(once) and metadata_of(twice) == metadata_of(once)


def test_nothing_is_lost_and_the_change_is_reported(tool) -> None:
    run, source = tool
    before, out = source.read_bytes(), source.with_name("out.safetensors")
    report = run(source, Destination(out))
    said = json.loads(report.json())
    assert said.get("changes") or said.get("changed"), "a tool says what it did"
    assert source.read_bytes() == before
    old, new = raw(source), raw(out)
    for name, content in old.items():
        if name.endswith((".weight", ".bias")) or name.startswith(("strange", "stranger")):
            assert new[name] == content, name
    text = metadata_of(out)
    assert text["modelspec.title"] == "a title" and text["strange"] == "{not json"


def test_a_dry_run_writes_nothing(tool) -> None:
    run, source = tool
    before = source.read_bytes()
    said = json.loads(run(source, Destination(dry_run=True)).json())
    assert said.get("changes") or said.get("changed")
    assert list(source.parent.iterdir()) == [source] and source.read_bytes() == before


def test_a_disk_that_refuses_leaves_everything_as_it_was(
    tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place too: the source is replaced when its successor is whole, or not at all."""
    run, source = tool
    before = source.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("roundsmith.checkpoints.writer.publish", full)
    for destination in (Destination(in_place=True), Destination(source.with_name("o.safetensors"))):
        with pytest.raises(CheckpointError, match="disk is full; make room"):
            run(source, destination)
        assert list(source.parent.iterdir()) == [source] and source.read_bytes() == before


def metadata_of(path: Path) -> dict[str, str]:
    """Metadata without opening tensors torch has no dtype for."""
    with Checkpoint.open(path) as file:
        return dict(file.metadata)
