"""Writers that fail, by an exception, a full disk or a refusing system, leave no file."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from roundsmith.checkpoints import CheckpointWriter, files, writer
from roundsmith.errors import CheckpointError

ONE = {"a": (torch.float32, (4, 2))}
VALUES = torch.arange(8.0).reshape(4, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
@pytest.mark.usefixtures("both_ways")
def test_any_exception_leaves_no_file(path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), CheckpointWriter(path, ONE, {}) as out:
        out.write_rows("a", 0, VALUES[:1])
        assert len(os.listdir(path.parent)) == 1
        raise failure
    assert os.listdir(path.parent) == []
    with pytest.raises(ValueError, match="not open for writing"):
        out.write("a", VALUES)


def test_an_interrupt_while_entering_leaves_no_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.PositionalFile, "write_from", interrupt)
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(path, ONE, {}):
        pass
    assert os.listdir(path.parent) == []


def test_too_little_space_is_said_before_the_first_byte(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 1_500_000_000))
    entries = {"a": (torch.uint8, (2_600_000_000,))}
    with (
        pytest.raises(CheckpointError, match=r"out\.safe.*takes 2\.6 GB.*has 1\.5 GB free; make"),
        CheckpointWriter(path, entries, {}),
    ):
        pass
    assert os.listdir(path.parent) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_meanwhile(small_disk: Path) -> None:
    path = small_disk / "out.safetensors"
    with (
        pytest.raises(CheckpointError, match=r"out\.safetensors: the disk is full; make room"),
        CheckpointWriter(path, {"a": (torch.uint8, (700_000,))}, {}) as out,
    ):
        (small_disk / "other").write_bytes(bytes(600_000))
        out.write("a", torch.ones(700_000, dtype=torch.uint8))
    assert os.listdir(small_disk) == ["other"]


def test_a_disk_too_small_from_the_start(small_disk: Path) -> None:
    path = small_disk / "out.safetensors"
    with (
        pytest.raises(CheckpointError, match=r"takes 0\.002 GB and the disk has 0\.001 GB free"),
        CheckpointWriter(path, {"a": (torch.uint8, (2_000_000,))}, {}),
    ):
        pass


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "cannot hold a file of"),
        (errno.EACCES, "access denied"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["truncate", "pwrite", "fsync", "replace"])
def test_a_refusing_system_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, message: str
) -> None:
    if not hasattr(os, call):
        pytest.skip(f"this system has no os.{call}")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    with (
        pytest.raises(CheckpointError, match=rf"cannot write .*out\.safetensors: .*{message}"),
        CheckpointWriter(path, ONE, {}, overwrite=True) as out,
    ):
        out.write("a", VALUES)
    monkeypatch.undo()
    assert os.listdir(path.parent) == []


def test_an_error_the_disk_reports_early_is_not_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, []

    def refuse_once(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_once)
    monkeypatch.setattr(writer, "_SYNC_EVERY", 16)
    with (
        pytest.raises(CheckpointError, match="Input/output error"),
        CheckpointWriter(path, ONE, {}) as out,
    ):
        out.write("a", VALUES)
    assert os.listdir(path.parent) == []
