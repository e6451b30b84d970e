"""The safetensors library is the reference: it reads what we write, we read what it writes."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from roundsmith.checkpoints import Checkpoint, CheckpointWriter
from roundsmith.checkpoints.dtypes import DTYPES
from roundsmith.errors import CheckpointError

few = settings(max_examples=40, deadline=None)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = texts.filter(lambda name: name != "__metadata__")


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype and shape with arbitrary bits (NaNs and infinities included)."""
    dtype, shape = draw(st.sampled_from(list(DTYPES.values()))), draw(shapes)
    size = math.prod(shape) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


state_dicts = st.dictionaries(names, tensors(), max_size=6)
metadatas = st.dictionaries(texts, texts, max_size=3)


@few
@given(state_dicts, metadatas)
def test_we_read_what_the_library_writes(
    state: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        # None for none: of no tensors and {} the library makes a header it cannot read itself.
        save_file(state, path, metadata=metadata or None)
        with Checkpoint.open(path) as checkpoint:
            assert checkpoint.metadata == metadata
            assert set(checkpoint.tensors) == set(state)
            for name, tensor in state.items():
                assert same_bits(checkpoint.read(name), tensor), name
                if tensor.dim():
                    rows = checkpoint.read_rows(name, tensor.shape[0] // 2, tensor.shape[0])
                    assert same_bits(rows, tensor[tensor.shape[0] // 2 :]), name


@few
@given(state_dicts, metadatas)
def test_the_library_reads_what_we_write(
    state: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
        with CheckpointWriter(path, entries, metadata) as writer:
            for name, tensor in state.items():
                writer.write(name, tensor)
        with safe_open(path, "pt") as file:
            assert (file.metadata() or {}) == metadata
            assert set(file.keys()) == set(state)
            for name, tensor in state.items():
                assert same_bits(file.get_tensor(name), tensor), name


sizes = st.integers(-1, 3)
offsets = st.integers(-1, 12)
header_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8"]),
        "shape": st.lists(sizes, max_size=2),
        "data_offsets": st.tuples(offsets, offsets),
    }
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), header_entries, max_size=2), st.integers(0, 12))
def test_we_accept_and_refuse_what_the_library_does(content: dict[str, object], size: int) -> None:
    text = json.dumps(content).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError:
            with pytest.raises(CheckpointError):
                Checkpoint.open(path)
        else:
            Checkpoint.open(path).close()
