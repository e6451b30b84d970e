"""Temporary files of killed writers: left under their own name, removed by the next writer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from roundsmith.checkpoints import CheckpointWriter, partial

ONE = {"a": (torch.float32, (4,))}
VALUES = torch.arange(4.0)

KILLED = """
import sys, torch
from roundsmith.checkpoints import CheckpointWriter
with CheckpointWriter(sys.argv[1], {"a": (torch.float32, (4,))}, {}) as out:
    out.write_rows("a", 0, torch.ones(2))
    print("written", flush=True)
    sys.stdin.read()
"""


def write(path: Path) -> list[str]:
    """Write a file; returns the names of the partials that were removed."""
    with CheckpointWriter(path, ONE, {}, overwrite=True) as out:
        out.write("a", VALUES)
    assert torch.equal(load_file(path)["a"], VALUES)
    return [removed.name for removed in out.removed_partials]


def test_a_killed_writer_leaves_no_file_and_the_next_clears_up(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", KILLED, path], stdin=pipe, stdout=pipe) as process:
        assert process.stdout and process.stdout.readline().strip() == b"written"
        name = f".model.safetensors.{process.pid}.roundsmith-partial"
        assert os.listdir(tmp_path) == [name]
        assert write(path) == []  # it is alive: its file stays
        assert sorted(os.listdir(tmp_path)) == [name, path.name]
        path.unlink()
        process.kill()
        process.wait()
    assert os.listdir(tmp_path) == [name]
    assert write(path) == [name]
    assert os.listdir(tmp_path) == [path.name]


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_partials_of_this_name_and_of_dead_processes_go(tmp_path: Path, dead_pid: int) -> None:
    stale = [
        f".model.safetensors.{dead_pid}.roundsmith-partial",
        f".model.safetensors.{dead_pid}-2.roundsmith-partial",
        f".model.safetensors.{os.getpid()}.roundsmith-partial",  # a container's pid, used again
        ".model.safetensors.0.roundsmith-partial",
        ".model.safetensors.99999999999999999999.roundsmith-partial",
    ]
    kept = [
        f".model.safetensors.{os.getppid()}.roundsmith-partial",
        f".other.safetensors.{dead_pid}.roundsmith-partial",
        f".modelxsafetensors.{dead_pid}.roundsmith-partial",
        f".model.safetensors.{dead_pid}.partial",
        ".model.safetensors.x.roundsmith-partial",
    ]
    for name in stale + kept:
        (tmp_path / name).write_bytes(b"rest")
    assert sorted(write(tmp_path / "model.safetensors")) == sorted(stale)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "model.safetensors"])


def test_a_partial_that_cannot_be_removed_is_left(tmp_path: Path, dead_pid: int) -> None:
    stale = tmp_path / f".model.safetensors.{dead_pid}.roundsmith-partial"
    stale.mkdir()  # unlink fails on it, as it does on Windows for a file another process has open
    assert write(tmp_path / "model.safetensors") == []
    assert stale.exists()


def test_relative_destinations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write(Path("model.safetensors")) == []
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_this_process_is_alive_and_a_finished_one_is_not(dead_pid: int) -> None:
    assert partial._is_alive(os.getpid())
    assert not partial._is_alive(dead_pid)
