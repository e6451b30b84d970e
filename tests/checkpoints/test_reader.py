"""Reading tensors and rows: exact, into the caller's memory, from many threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from roundsmith.checkpoints import Checkpoint, files
from roundsmith.errors import CheckpointError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    path = tmp_path / "model.safetensors"
    save_file(
        {
            "weight": torch.randn(64, 33, generator=generator).bfloat16(),
            "codes": torch.randint(0, 255, (64, 7), generator=generator, dtype=torch.uint8),
            "scalar": torch.tensor(3.5),
            "empty": torch.empty(0, 4),
            "no_columns": torch.empty(3, 0),
        },
        path,
        metadata={"made": "by the library"},
    )
    return path


@pytest.mark.usefixtures("both_ways")
def test_reads_tensors_and_rows(model: Path) -> None:
    with Checkpoint.open(model) as checkpoint:
        weight = checkpoint.read("weight")
        assert weight.shape == (64, 33)
        assert torch.equal(checkpoint.read_rows("weight", 5, 9), weight[5:9])
        assert checkpoint.read_rows("weight", 64, 64).shape == (0, 33)
        assert checkpoint.read("scalar") == 3.5
        assert checkpoint.read("empty").shape == (0, 4)
        assert checkpoint.read_rows("empty", 0, 0).shape == (0, 4)
        assert checkpoint.read_rows("no_columns", 1, 3).shape == (2, 0)
        assert checkpoint.nbytes == 64 * 33 * 2 + 64 * 7 + 4
        assert checkpoint.metadata == {"made": "by the library"}
        assert checkpoint.path == model
        assert checkpoint.notes == []


def test_rows_go_into_the_given_memory(model: Path) -> None:
    with Checkpoint.open(model) as checkpoint:
        weight = checkpoint.read("weight")
        out = torch.full((6, 33), 7.0, dtype=torch.bfloat16)
        full = checkpoint.read_rows("weight", 10, 16, out)
        assert full is out
        assert torch.equal(out, weight[10:16])
        part = checkpoint.read_rows("weight", 20, 22, out)
        assert part.data_ptr() == out.data_ptr()
        assert torch.equal(part, weight[20:22])
        assert torch.equal(out[2:], weight[12:16])  # the rest is untouched


@pytest.mark.parametrize(
    "out",
    [
        torch.empty(2, 33),
        torch.empty(1, 33, dtype=torch.bfloat16),
        torch.empty(2, 32, dtype=torch.bfloat16),
        torch.empty(66, dtype=torch.bfloat16),
        torch.empty((), dtype=torch.bfloat16),
        torch.empty(33, 2, dtype=torch.bfloat16).T,
        torch.empty(2, 33, dtype=torch.bfloat16, device="meta"),
    ],
    ids=["dtype", "rows", "columns", "rank", "scalar", "strides", "device"],
)
def test_refuses_memory_that_does_not_fit(model: Path, out: torch.Tensor) -> None:
    with (
        Checkpoint.open(model) as checkpoint,
        pytest.raises(ValueError, match="'weight': out must"),
    ):
        checkpoint.read_rows("weight", 0, 2, out)


def test_refuses_rows_that_are_not_there(model: Path) -> None:
    with Checkpoint.open(model) as checkpoint:
        for start, stop in ((-1, 3), (5, 4), (0, 65)):
            with pytest.raises(ValueError, match="'weight' has 64 rows"):
                checkpoint.read_rows("weight", start, stop)
        with pytest.raises(ValueError, match=r"'scalar' is a scalar.*read\(\)"):
            checkpoint.read_rows("scalar", 0, 1)
        with pytest.raises(ValueError, match="'codes' has 448 bytes"):
            checkpoint.read_bytes("codes", 5, 449)
        with pytest.raises(CheckpointError, match=r"model\.safetensors has no tensor 'absent'"):
            checkpoint.read("absent")


@pytest.mark.usefixtures("both_ways")
def test_many_threads_read_at_once(model: Path) -> None:
    with Checkpoint.open(model) as checkpoint, ThreadPoolExecutor(8) as pool:
        weight, codes = checkpoint.read("weight"), checkpoint.read("codes")

        def rows(row: int) -> bool:
            return torch.equal(
                checkpoint.read_rows("weight", row, row + 1), weight[row : row + 1]
            ) and torch.equal(checkpoint.read_rows("codes", row, row + 1), codes[row : row + 1])

        assert all(pool.map(rows, list(range(64)) * 8))


@pytest.mark.usefixtures("both_ways")
def test_reads_longer_than_one_system_call(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoint.open(model) as checkpoint:
        whole = checkpoint.read("weight")
        monkeypatch.setattr(files, "_PIECE", 100)
        assert torch.equal(checkpoint.read("weight"), whole)


def test_opaque_tensors_are_copied_not_read(raw_file: Any) -> None:
    path = raw_file(
        {"odd": {"dtype": "Q9", "shape": [5], "data_offsets": [0, 4]}}, b"\x01\x02\x03\x04"
    )
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.read_bytes("odd") == b"\x01\x02\x03\x04"
        assert checkpoint.read_bytes("odd", 1, 3) == b"\x02\x03"
        for read in (checkpoint.read, lambda name: checkpoint.read_rows(name, 0, 1)):
            with pytest.raises(CheckpointError, match=r"'odd' in .*model\.safetensors.*Q9"):
                read("odd")


def test_nothing_is_mapped(model: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list mapped files")
    with Checkpoint.open(model) as checkpoint:
        checkpoint.read("weight")
        assert str(model) not in maps.read_text()


@pytest.mark.usefixtures("both_ways")
def test_a_file_cut_while_it_is_read_is_named(model: Path) -> None:
    with Checkpoint.open(model) as checkpoint:
        last = list(checkpoint.tensors)[-1]
        os.truncate(model, model.stat().st_size - 10)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors.*'{last}'.*changed"):
            checkpoint.read(last)


def test_a_failing_disk_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with Checkpoint.open(model) as checkpoint:
        monkeypatch.setattr(files.PositionalFile, "read_into", fail)
        with pytest.raises(CheckpointError, match=r"'weight'.*model\.safetensors: Input/output"):
            checkpoint.read("weight")


@pytest.mark.usefixtures("both_ways")
def test_closing_ends_reading(model: Path) -> None:
    with Checkpoint.open(model) as checkpoint:
        checkpoint.read("scalar")
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        checkpoint.read("scalar")
    os.replace(model, model.with_name("moved"))  # fails on Windows while a handle is open
