"""Patches: what is shown is what is written, and all else is the source's bytes."""

from __future__ import annotations

import errno
import json
import os
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from roundsmith.checkpoints import Checkpoint
from roundsmith.checkpoints.partial import create_partial, discard_partial
from roundsmith.converters.patching import Destination, Patch, Tool, run_tool
from roundsmith.errors import Cancelled, CheckpointError, DestinationExistsError, RecipeError

from .files import contents, metadata, save


@pytest.fixture
def source(tmp_path):
    tensors = {
        "a.weight": torch.randn(300, 40).bfloat16(),
        "a.scale": torch.tensor([0.5]),
        "b.odd": torch.zeros(0, 3),
        "c": torch.arange(7, dtype=torch.uint8),
    }
    return save(tmp_path / "source.safetensors", tensors, title="t", other="o")


def run(path, change, destination, **options):
    def make(checkpoint):
        patch = Patch(checkpoint)
        change(patch)
        return Tool("test", patch)

    return run_tool(path, make, destination, **options)


def everything(patch):
    patch.put("new", torch.ones(2))
    patch.put("c", torch.zeros(7, dtype=torch.uint8))
    patch.view("a.scale", torch.float32, ())
    patch.rename("a.scale", "a.size")
    patch.drop("b.odd")
    patch.metadata["title"] = "changed"
    patch.describe({"a": {"format": "x", "group_size": 1}})


def test_every_kind_of_change_is_written_and_shown(source, tmp_path):
    out = tmp_path / "out.safetensors"
    report = run(source, everything, Destination(out))
    before, after = contents(source), contents(out)
    assert after["a.weight"] == before["a.weight"]
    assert after["a.size"] == (before["a.scale"][0], (), before["a.scale"][2])
    assert set(after) == {"a.weight", "a.size", "c", "new", "a.comfy_quant"}
    assert not load_file(out)["c"].any()
    assert metadata(out)["title"] == "changed" and metadata(out)["other"] == "o"
    shown = {(x.entry, x.what): (x.before, x.after) for x in report.changes}
    assert shown == {
        ("new", "added"): (None, "F32 [2]"),
        ("c", "value"): ("U8 [7]", "U8 [7]"),
        ("a.scale", "shape"): ("F32 [1]", "F32 []"),
        ("a.scale", "name"): ("a.scale", "a.size"),
        ("b.odd", "removed"): ("F32 [0, 3]", None),
        ("title", "metadata"): ("t", "changed"),
        ("a", "format"): (None, "x"),
        ("a", "group_size"): (None, 1),
    }
    assert report.bytes == out.stat().st_size and report.copied == 2
    assert json.loads(report.json())["changes"][0]["entry"]
    assert "b.odd" in report.table() and "8 changes" in report.summary()


def test_what_is_there_already_is_no_change(source, tmp_path):
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    run(source, everything, Destination(out))

    def same(patch):
        patch.put("new", torch.ones(2))
        patch.view("a.size", torch.float32, ())
        patch.rename("c", "c")
        patch.describe({"a": {"format": "x", "group_size": 1}})

    report = run(out, same, Destination(again))
    assert report.changes == () and "nothing to change" in report.summary()
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("value", [True, 1, 1.0])
def test_one_and_true_are_told_apart(source, tmp_path, value):
    out = tmp_path / "out.safetensors"
    run(source, lambda patch: patch.describe({"a": {"x": value}}), Destination(out))
    report = run(out, lambda patch: patch.describe({"a": {"x": 1}}), Destination(dry_run=True))
    assert bool(report.changes) == (type(value) is not int)


def test_a_dry_run_writes_nothing_and_knows_the_size(source, tmp_path):
    before = sorted(tmp_path.iterdir())
    report = run(source, everything, Destination(dry_run=True))
    assert sorted(tmp_path.iterdir()) == before and report.path == ""
    out = tmp_path / "out.safetensors"
    run(source, everything, Destination(out))
    assert report.bytes == out.stat().st_size
    assert f"{report.bytes:,} bytes" in report.summary()


def test_in_place_only_when_asked(source):
    before = source.read_bytes()
    with pytest.raises(CheckpointError, match="source itself"):
        run(source, everything, Destination(source, overwrite=True))
    assert source.read_bytes() == before
    report = run(source, everything, Destination(in_place=True))
    assert report.path == str(source) and source.read_bytes() != before
    state = source.stat()
    run(source, lambda patch: patch.put("new", torch.ones(2)), Destination(in_place=True))
    assert source.stat().st_mtime_ns == state.st_mtime_ns, "nothing changed: not written"


def test_destinations_that_cannot_be(source, tmp_path):
    with pytest.raises(RecipeError, match="no destination"):
        run(source, everything, Destination())
    with pytest.raises(RecipeError, match="contradict"):
        run(source, everything, Destination(tmp_path / "x.safetensors", in_place=True))
    existing = save(tmp_path / "x.safetensors", {"t": torch.ones(1)})
    was = existing.read_bytes()
    with pytest.raises(DestinationExistsError, match="allow overwriting"):
        run(source, everything, Destination(existing))
    assert existing.read_bytes() == was
    run(source, everything, Destination(existing, overwrite=True))
    assert "a.weight" in load_file(existing)


def test_shards_become_one_file_but_not_in_place(tmp_path):
    folder = tmp_path / "sharded"
    folder.mkdir()
    for index, name in enumerate(("a", "b")):
        save_file({name: torch.full((3,), float(index))}, folder / f"{name}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {x: f"{x}.safetensors" for x in "ab"}}))
    with pytest.raises(CheckpointError, match="shards"):
        run(folder, everything_small, Destination(in_place=True))
    with pytest.raises(CheckpointError, match="source itself"):
        run(folder, everything_small, Destination(folder / "a.safetensors", overwrite=True))
    out = tmp_path / "one.safetensors"
    run(folder, everything_small, Destination(out))
    assert set(load_file(out)) == {"a", "b", "new"}


def everything_small(patch):
    patch.put("new", torch.ones(1))


def test_both_names_in_one_file_are_refused(source):
    with pytest.raises(CheckpointError, match=r"both 'c' and 'a\.scale'"):
        run(source, lambda patch: patch.rename("c", "a.scale"), Destination(dry_run=True))


def test_a_source_that_is_cut_short_midway(source, tmp_path):
    out, size = tmp_path / "out.safetensors", source.stat().st_size

    def cut(_):
        os.truncate(source, size - 1000)

    with pytest.raises(CheckpointError, match=r"ended inside tensor|was changed"):
        run(source, everything_small, Destination(out), progress=cut)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_source_that_is_replaced_midway(source, tmp_path):
    """Another run in place, for example: neither overwrites what the other did in silence."""
    other = save(tmp_path / "other.safetensors", {"t": torch.ones(1)})
    replaced = []

    def replace(_):
        if not replaced:
            replaced.append(other.read_bytes())
            os.replace(other, source)

    with pytest.raises(CheckpointError, match="changed by another program"):
        run(source, everything_small, Destination(in_place=True), progress=replace)
    assert source.read_bytes() == replaced[0]
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_source_that_vanishes(source, tmp_path):
    """Before it is read: an error. While it is: the copy is complete, and is all that is left."""
    def gone(patch):
        everything_small(patch)
        source.unlink()

    with pytest.raises(CheckpointError, match=r"cannot read tensor .*source\.safetensors"):
        run(source, gone, Destination(tmp_path / "out.safetensors"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove a file in use")
def test_a_source_that_vanishes_while_it_is_read(source, tmp_path):
    out, seen = tmp_path / "out.safetensors", []
    expected = contents(source)

    def gone(progress):
        seen.append(progress)
        if len(seen) == 2:
            source.unlink()

    report = run(source, everything_small, Destination(out), progress=gone)
    assert any("was removed" in note for note in report.notes)
    assert {k: v for k, v in contents(out).items() if k != "new"} == expected


def test_a_cancelled_run_leaves_nothing(source, tmp_path):
    with pytest.raises(Cancelled):
        run(source, everything_small, Destination(in_place=True), cancel=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_two_runs_to_one_destination(source, tmp_path):
    """Both write whole files of their own; the second to finish is told, and the first's stays."""
    out = tmp_path / "out.safetensors"
    meet = threading.Barrier(2, timeout=30)
    failures, met = [], threading.local()

    def wait(_):
        if not getattr(met, "done", False):
            met.done = True
            meet.wait()

    def work(index):
        try:
            run(source, lambda patch: patch.put("who", torch.tensor(index)), Destination(out),
                progress=wait)  # fmt: skip
        except CheckpointError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 1 and str(out) in str(failures[0])
    assert "overwriting" in str(failures[0])
    assert int(load_file(out)["who"]) in (1, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, source.name]


def test_another_runs_temporary_file_is_left_alone(source, tmp_path):
    out = tmp_path / "out.safetensors"
    theirs = create_partial(out)
    try:
        run(source, everything_small, Destination(out))
        assert theirs.exists()
    finally:
        discard_partial(theirs)


def test_bytes_go_into_the_memory_that_is_given(source):
    with Checkpoint.open(source) as checkpoint:
        memory = memoryview(bytearray(5))
        assert checkpoint.read_bytes("c", 1, 6, out=memory) is memory
        assert bytes(memory) == bytes([1, 2, 3, 4, 5])
        with pytest.raises(ValueError, match="out has 5 bytes, not 4"):
            checkpoint.read_bytes("c", 1, 5, out=memory)


@pytest.mark.parametrize("way", ["missing", "refused", "in part"])
def test_without_the_systems_own_copying(source, tmp_path, monkeypatch, way):
    """Other systems have none, some file systems refuse, and a call may do less than was asked."""
    plain, out = tmp_path / "plain.safetensors", tmp_path / "out.safetensors"
    run(source, everything, Destination(plain))
    calls = []

    def refuse(*_):
        calls.append(1)
        raise OSError(errno.EXDEV, "across file systems")

    def some(ours, theirs, count, start, to):
        calls.append(1)
        if len(calls) > 2:
            return 0
        data = os.pread(ours, min(count, 1000), start)
        return os.pwrite(theirs, data, to)

    if way == "missing":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse if way == "refused" else some, False)
    run(source, everything, Destination(out))
    assert out.read_bytes() == plain.read_bytes()
    assert bool(calls) == (way != "missing")


@pytest.mark.parametrize("chunk", [1, 999, 24_000])
def test_large_tensors_are_copied_piece_by_piece(source, tmp_path, monkeypatch, chunk):
    from roundsmith.converters.patching import patch as module

    monkeypatch.setattr(module, "_CHUNK", chunk)
    save(source, {"a.weight": torch.randn(chunk, 3).bfloat16(), "b": torch.randn(5)})
    out = tmp_path / "out.safetensors"
    pieces = []
    run(source, everything_small, Destination(out), progress=pieces.append)
    assert {k: v for k, v in contents(out).items() if k != "new"} == contents(source)
    assert len(pieces) >= 6
    done = [progress.bytes_done for progress in pieces]
    assert done == sorted(set(done)) and pieces[0].bytes_total == 6 * chunk + 20
