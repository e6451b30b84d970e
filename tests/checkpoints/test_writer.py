"""Writing: exact bytes in any order and from any thread, under the right name or none."""

from __future__ import annotations

import errno
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from roundsmith.checkpoints import Checkpoint, CheckpointWriter, files, writer
from roundsmith.errors import CheckpointError, DestinationExistsError

ONE = {"a": (torch.float32, (4, 2))}
VALUES = torch.arange(8.0).reshape(4, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


def only(path: Path) -> bool:
    """Whether the folder holds this file and nothing else: no temporary file is left."""
    return os.listdir(path.parent) == [path.name]


@pytest.mark.usefixtures("both_ways")
def test_tensors_and_rows_come_in_any_order(path: Path) -> None:
    entries: dict[str, Any] = {
        "codes": (torch.int8, (6, 5)),
        "weight": (torch.bfloat16, (7, 3)),
        "scale": ("F32", ()),
        "empty": (torch.float16, (0, 3)),
        "fp8": (torch.float8_e4m3fn, (4,)),
    }
    state = {
        "codes": torch.arange(30, dtype=torch.int8).reshape(6, 5),
        "weight": torch.randn(7, 3).bfloat16(),
        "scale": torch.tensor(0.25),
        "empty": torch.empty(0, 3, dtype=torch.float16),
        "fp8": torch.tensor([1.0, -2.0, 448.0, 0.0]).to(torch.float8_e4m3fn),
    }
    with CheckpointWriter(path, entries, {"k": "v"}) as out:
        out.write_rows("codes", 4, state["codes"][4:])
        out.write("fp8", state["fp8"])
        out.write_rows("weight", 0, state["weight"][:5])
        out.write("scale", state["scale"])
        out.write_rows("codes", 0, state["codes"][:4])
        out.write_rows("weight", 5, state["weight"][5:])
        assert not path.exists()
    assert only(path)
    assert path.stat().st_size == out.nbytes
    loaded = load_file(path)
    for name, tensor in state.items():
        assert torch.equal(loaded[name].float(), tensor.float()), name
        assert loaded[name].dtype == tensor.dtype


def test_any_strides_are_written_row_major(path: Path) -> None:
    state = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 4),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj(),
        "negative": torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "slice": torch.arange(10)[::3],
    }
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    with CheckpointWriter(path, entries, {}) as out:
        for name, tensor in state.items():
            out.write(name, tensor)
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.usefixtures("both_ways")
def test_many_threads_write_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_SYNC_EVERY", 1000)  # the disk is told early, meanwhile
    entries = {f"t{i}": (torch.int32, (64, 16)) for i in range(8)}
    state = {f"t{i}": torch.randint(0, 2**31, (64, 16), dtype=torch.int32) for i in range(8)}
    with CheckpointWriter(path, entries, {}) as out, ThreadPoolExecutor(8) as pool:

        def put(place: tuple[str, int]) -> None:
            name, row = place
            out.write_rows(name, row, state[name][row : row + 4])

        list(pool.map(put, itertools.product(state, range(0, 64, 4))))
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.usefixtures("both_ways")
def test_writes_longer_than_one_system_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PIECE", 7)
    with CheckpointWriter(path, ONE, {}) as out:
        out.write("a", VALUES)
    assert torch.equal(load_file(path)["a"], VALUES)


def test_opaque_tensors_are_copied_as_bytes(raw_file: Any, path: Path) -> None:
    content = {
        "f4": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
        "odd": {"dtype": "Q9", "shape": [5], "data_offsets": [2, 5]},
    }
    with Checkpoint.open(raw_file(content, b"\x01\x02\x03\x04\x05")) as source:
        entries = {name: info.entry for name, info in source.tensors.items()}
        with CheckpointWriter(path, entries, {}) as out:
            out.write_bytes("odd", 1, source.read_bytes("odd", 1))
            out.write_bytes("odd", 0, b"\x03")
            out.write_bytes("f4", 0, memoryview(source.read_bytes("f4")))
            with pytest.raises(ValueError, match=r"'odd' is opaque \(Q9\)"):
                out.write("odd", torch.zeros(5, dtype=torch.uint8))
            with pytest.raises(ValueError, match="'odd' has 3 bytes"):
                out.write_bytes("odd", 2, b"ab")
    with Checkpoint.open(path) as copy:
        assert copy.tensors["odd"].dtype_name == "Q9"
        assert copy.tensors["odd"].shape == (5,)
        assert copy.read_bytes("odd") == b"\x03\x04\x05"
        assert copy.read_bytes("f4") == b"\x01\x02"


def test_refuses_what_was_not_announced(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), CheckpointWriter(path, ONE, {}) as out:
        for wrong in (VALUES.half(), VALUES.T, VALUES[:3]):
            with pytest.raises(ValueError, match="'a' was announced as"):
                out.write("a", wrong)
        with pytest.raises(ValueError, match="'a' was announced as"):
            out.write_rows("a", 0, VALUES[:, :1])
        for row in (-1, 3):
            with pytest.raises(ValueError, match="'a' has 4 rows"):
                out.write_rows("a", row, VALUES[:2])
        with pytest.raises(ValueError, match=r"scalar has no rows.*write\(\)"):
            out.write_rows("a", 0, torch.tensor(1.0))
        with pytest.raises(ValueError, match="'b' is not among"):
            out.write("b", VALUES)
        raise ZeroDivisionError
    assert os.listdir(path.parent) == []


def test_incomplete_tensors_are_named_and_leave_no_file(path: Path) -> None:
    entries = {**ONE, "b": (torch.uint8, (3,)), "c": (torch.uint8, (3,))}
    with (
        pytest.raises(CheckpointError, match=r"out\.safetensors.*'a' and 1 more.*16 of 32 bytes"),
        CheckpointWriter(path, entries, {}) as out,
    ):
        out.write("b", torch.zeros(3, dtype=torch.uint8))
        out.write_rows("a", 0, VALUES[:2])
        out.write_rows("a", 0, VALUES[:2])  # twice the same rows are not the whole
    assert os.listdir(path.parent) == []


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), max_size=12))
def test_coverage_counts_each_byte_once(ranges: list[list[int]]) -> None:
    coverage = writer._Coverage()
    for start, stop in ranges:
        coverage.add(start, stop)
    assert coverage.total == len({byte for start, stop in ranges for byte in range(start, stop)})


def test_an_existing_file_is_kept_unless_overwriting(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(DestinationExistsError, match=r"out\.safetensors exists.*overwriting"):
        CheckpointWriter(path, ONE, {})
    with pytest.raises(RuntimeError), CheckpointWriter(path, ONE, {}, overwrite=True) as out:
        out.write("a", VALUES)
        raise RuntimeError
    assert path.read_bytes() == b"precious"
    with CheckpointWriter(path, ONE, {}, overwrite=True) as out:
        out.write("a", VALUES)
    assert torch.equal(load_file(path)["a"], VALUES)
    assert only(path)


def test_a_file_that_appears_meanwhile_is_kept(path: Path) -> None:
    with (
        pytest.raises(DestinationExistsError, match="meanwhile"),
        CheckpointWriter(path, ONE, {}) as out,
    ):
        out.write("a", VALUES)
        path.write_bytes(b"precious")
    assert path.read_bytes() == b"precious"
    assert only(path)


def test_without_hard_links_the_file_is_renamed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    with CheckpointWriter(path, ONE, {}) as out:
        out.write("a", VALUES)
    assert only(path)
    path.unlink()
    with (
        pytest.raises(DestinationExistsError, match="meanwhile"),
        CheckpointWriter(path, ONE, {}) as out,
    ):
        out.write("a", VALUES)
        path.write_bytes(b"precious")
    assert path.read_bytes() == b"precious"


def test_destinations_that_cannot_be(path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        CheckpointWriter(path.parent, ONE, {}, overwrite=True)
    with pytest.raises(CheckpointError, match=r"there is no folder .*missing; create it"):
        CheckpointWriter(path.parent / "missing" / "out.safetensors", ONE, {})
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="there is no folder"):
        CheckpointWriter(path / "out.safetensors", ONE, {})
    with pytest.raises(CheckpointError, match="metadata 'k' must be text"):
        CheckpointWriter(path.with_name("b"), ONE, {"k": 1})  # type: ignore[dict-item]


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_writers_of_one_name_do_not_mix(path: Path, overwrite: bool) -> None:
    with CheckpointWriter(path, ONE, {}, overwrite) as first:
        first.write("a", VALUES)
        second = CheckpointWriter(path, ONE, {}, overwrite)
        with second:
            second.write("a", -VALUES)
            assert second.removed_partials == []
            assert len(os.listdir(path.parent)) == 2
        assert torch.equal(load_file(path)["a"], -VALUES)
        if not overwrite:
            path.unlink()
    assert torch.equal(load_file(path)["a"], VALUES)
    assert only(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_the_file_gets_the_usual_permissions(path: Path) -> None:
    with CheckpointWriter(path, ONE, {}) as out:
        out.write("a", VALUES)
    reference = path.with_name("reference")
    reference.write_bytes(b"")
    assert path.stat().st_mode == reference.stat().st_mode
