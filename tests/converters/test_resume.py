"""Finished layers of a cancelled run: found again, and only then."""

import os
from pathlib import Path

import pytest
import torch

from roundsmith.converters.resume import Finished, Journal

LAYER = Finished({"weight": torch.arange(6, dtype=torch.int8).view(2, 3)}, {"method": "learned"})


def test_a_finished_layer_is_found_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "layers")
    key = journal.key("settings", [torch.ones(3)])
    assert journal.find(key) is None
    journal.keep(key, LAYER)
    found = Journal(tmp_path / "layers").find(key)
    assert found is not None and found.facts == LAYER.facts
    assert torch.equal(found.parts["weight"], LAYER.parts["weight"])


def test_the_key_is_what_the_result_depends_on() -> None:
    key = Journal.key("settings", [torch.ones(3)])
    assert key == Journal.key("settings", [torch.ones(3)])
    others = [
        Journal.key("other", [torch.ones(3)]),
        Journal.key("settings", [torch.zeros(3)]),
        Journal.key("settings", [torch.ones(3, 1)]),
        Journal.key("settings", [torch.ones(3, dtype=torch.bfloat16)]),
        Journal.key("settings", [torch.ones(3), torch.ones(3)]),
    ]
    assert len({key, *others}) == 6


def test_a_half_written_layer_is_solved_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.keep("abc", LAYER)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-3])
    assert journal.find("abc") is None


def test_clearing_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "layers"
    journal = Journal(folder)
    journal.keep("abc", LAYER)
    (folder / "notes.txt").write_text("mine")
    journal.clear()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    journal.keep("abc", LAYER)
    journal.clear()
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    journal = Journal(tmp_path / "file" / "layers")
    journal.keep("abc", LAYER)
    assert "cannot be kept" in journal.note
    journal.clear()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8, torch.bfloat16])
def test_every_stored_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    journal = Journal(tmp_path)
    part = torch.arange(8).view(2, 4).to(dtype)
    journal.keep("abc", Finished({"weight": part}, {}))
    found = journal.find("abc")
    assert found is not None and found.parts["weight"].dtype == dtype
    assert torch.equal(found.parts["weight"].view(torch.uint8), part.view(torch.uint8))


def test_a_shared_folder_keeps_what_others_have_finished(tmp_path: Path) -> None:
    """One model's run that completes leaves another's, which was cancelled, what it has done."""
    cancelled = Journal(tmp_path / "layers", shared=True)
    cancelled.keep("theirs", LAYER)
    mine = Journal(tmp_path / "layers", shared=True)
    mine.keep("mine", LAYER)
    mine.clear()
    assert Journal(tmp_path / "layers", shared=True).find("mine") is None
    again = Journal(tmp_path / "layers", shared=True)
    assert again.find("theirs") is not None and not again.made("theirs")
    again.clear()
    assert not (tmp_path / "layers").exists()


def test_what_nobody_came_back_for_goes(tmp_path: Path) -> None:
    folder = tmp_path / "layers"
    for key in ("old", "new"):
        Journal(folder, shared=True).keep(key, LAYER)
    (path,) = folder.glob("old*")
    yesterday = path.stat().st_mtime - 25 * 3600
    os.utime(path, (yesterday, yesterday))
    Journal(folder, shared=True).clear()
    assert [p.name.split(".")[0] for p in folder.iterdir()] == ["new"]
