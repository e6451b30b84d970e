"""Reading headers: what is wrong is refused, by name, with the way out; the rest is kept."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from roundsmith.checkpoints import build_header, checkpoint_size, placement, read_header
from roundsmith.checkpoints.dtypes import DTYPES
from roundsmith.checkpoints.header import parse_header
from roundsmith.errors import CheckpointError

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = bytes(8)


def test_reads_metadata_and_tensors_in_the_order_of_their_bytes(raw_file: Any) -> None:
    path = raw_file(
        {
            "second": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]},
            "__metadata__": {"key": "väl"},
            "first": A,
            "scalar": {"dtype": "BF16", "shape": [], "data_offsets": [11, 13]},
            "empty": {"dtype": "F16", "shape": [0, 5], "data_offsets": [8, 8]},
        },
        bytes(13),
    )
    metadata, tensors = read_header(str(path))
    assert metadata == {"key": "väl"}
    assert list(tensors) == ["first", "empty", "second", "scalar"]
    assert tensors["scalar"].dtype == torch.bfloat16
    assert tensors["scalar"].shape == ()
    assert tensors["second"].nbytes == 3
    assert tensors["second"].offset == path.stat().st_size - 5
    assert tensors["second"].file == path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"abc", "only 3 bytes"),
        (b"PK\x03\x04" + bytes(60), "torch pickle"),
        (b"\x80\x02\x8a\nl\xfc\x9cF" + bytes(60), "pickle"),
        (b"GGUF\x03\x00\x00\x00" + bytes(60), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>{}</html>", "web page"),
        (struct.pack("<Q", 100_000_001) + b"{}", "100,000,001 bytes"),
        (b"\xff" * 64, "right file"),
        (struct.pack("<Q", 100) + b"{}", "cut short"),
    ],
)
def test_names_the_file_that_is_no_safetensors(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "download.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_header_whose_length_looks_like_a_pickle_is_read(raw_file: Any) -> None:
    text = json.dumps({"a": A}).encode()
    for length in (ord("<"), 0x80, 0x4B50):  # the first bytes of a web page, a pickle, a zip
        path = raw_file(text + b" " * (length - len(text)), DATA)
        assert list(read_header(path)[1]) == ["a"]


@pytest.mark.parametrize("text", [b"", b"[]", b"nope", b"{} x", b'{"\xff": 1}', b"[" * 10**5])
def test_refuses_a_header_that_is_no_object(raw_file: Any, text: bytes) -> None:
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors.*(not valid JSON|not an object)"
    ):
        read_header(raw_file(text))


def test_refuses_a_name_that_occurs_twice(raw_file: Any) -> None:
    entry = json.dumps(A).encode()
    path = raw_file(b'{"twin":%s,"twin":%s}' % (entry, entry), DATA)
    with pytest.raises(CheckpointError, match="'twin' occurs twice"):
        read_header(path)


@pytest.mark.parametrize(
    ("entries", "data", "message"),
    [
        ({"a": A}, bytes(7), "cut short"),
        ({"a": A}, bytes(9), "1 bytes after the last tensor"),
        ({"a": A, "b": {**A, "data_offsets": [4, 12]}}, bytes(12), "'b' overlaps"),
        ({"a": A, "b": A}, bytes(8), "overlaps"),
        ({"a": {**A, "data_offsets": [4, 12]}}, bytes(12), "4 bytes before tensor 'a'"),
        ({"a": A, "b": {**A, "data_offsets": [12, 20]}}, bytes(20), "4 bytes before tensor 'b'"),
        ({"a": {**A, "dtype": "BF16"}}, DATA, "'a' is BF16 [2], which takes 4 bytes"),
        ({"a": {**A, "shape": [3]}}, DATA, "'a' is F32 [3], which takes 12 bytes"),
        ({"a": {**A, "shape": [-2]}}, DATA, "shape of tensor 'a'"),
        ({"a": {**A, "shape": [2.0]}}, DATA, "shape of tensor 'a'"),
        ({"a": {**A, "shape": [True, 2]}}, DATA, "shape of tensor 'a'"),
        ({"a": {**A, "shape": "2"}}, DATA, "shape of tensor 'a'"),
        ({"a": {**A, "shape": [2**64]}}, DATA, "shape of tensor 'a'"),
        ({"a": {**A, "shape": [2**40, 2**40]}}, DATA, "impossibly large"),
        ({"a": {**A, "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}, b"", "impossibly"),
        ({"a": {**A, "data_offsets": [8, 0]}}, DATA, "ends (at 0) before it starts"),
        ({"a": {**A, "data_offsets": [0]}}, DATA, "data_offsets of tensor 'a'"),
        ({"a": {**A, "data_offsets": [0, -8]}}, DATA, "data_offsets of tensor 'a'"),
        ({"a": {**A, "dtype": 5}}, DATA, "dtype of tensor 'a'"),
        ({"a": {"dtype": "F32"}}, DATA, "tensor 'a' lacks"),
        ({"a": [1, 2]}, DATA, "tensor 'a' lacks"),
        ({"__metadata__": ["x"]}, b"", "__metadata__"),
    ],
)
def test_refuses_what_contradicts_itself(
    raw_file: Any, entries: dict[str, Any], data: bytes, message: str
) -> None:
    path = raw_file(entries, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "again" in str(caught.value)  # the way out


@pytest.mark.parametrize("stored", [None, {}])
def test_metadata_may_be_absent(raw_file: Any, stored: Any) -> None:
    assert read_header(raw_file({"__metadata__": stored, "a": A}, DATA))[0] == {}


def test_keeps_metadata_that_is_not_text_and_says_so(
    raw_file: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = raw_file({"__metadata__": {"n": 3, "o": {"k": "é"}, "s": "3"}}, b"")
    result = parse_header(path)
    assert result.metadata == {"n": "3", "o": '{"k": "é"}', "s": "3"}
    assert len(result.notes) == 2
    assert "'n'" in result.notes[0]
    assert str(path) in caplog.text


def test_unknown_dtypes_are_opaque(raw_file: Any) -> None:
    path = raw_file(
        {
            "a": {"dtype": "Q9", "shape": [5], "data_offsets": [0, 3]},
            "b": {"dtype": "F4", "shape": [4], "data_offsets": [3, 5]},
        },
        bytes(5),
    )
    tensors = read_header(path)[1]
    assert [(info.dtype, info.nbytes) for info in tensors.values()] == [(None, 3), (None, 2)]
    wrong = raw_file({"b": {"dtype": "F4", "shape": [4], "data_offsets": [0, 4]}}, bytes(4))
    with pytest.raises(CheckpointError, match="'b' is F4"):
        read_header(wrong)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        read_header(tmp_path / "none.safetensors")


def test_building_aligns_every_tensor_and_keeps_order_within_an_item_size() -> None:
    dtypes = [torch.uint8, torch.bfloat16, torch.float64, torch.int8, torch.float32, torch.float16]
    entries: dict[str, Any] = {f"t{i}": (dtype, (3, i)) for i, dtype in enumerate(dtypes)}
    entries["opaque"] = ("Q9", (5,), 7)
    text = build_header(entries, {"key": "value"})
    assert len(text) % 8 == 0
    content = json.loads(text[8:])
    assert content.pop("__metadata__") == {"key": "value"}
    assert list(content) == ["t2", "t4", "t1", "t5", "t0", "t3", "opaque"]
    for name, entry in content.items():
        dtype = DTYPES.get(entry["dtype"])
        assert entry["data_offsets"][0] % (dtype.itemsize if dtype else 1) == 0, name
    assert checkpoint_size(entries, {"key": "value"}) == len(text) + entry["data_offsets"][1]


@pytest.mark.parametrize(
    ("entries", "metadata", "message"),
    [
        ({"__metadata__": (torch.uint8, (1,))}, {}, "__metadata__"),
        ({"a": (torch.complex128, (1,))}, {}, "'a'.*complex128"),
        ({"a": (torch.uint8, (-1,))}, {}, "'a'.*negative"),
        ({"a": ("Q9", (1,))}, {}, "'a'.*bytes of Q9"),
        ({"a": ("F32", (1,), 5)}, {}, "'a'.*takes 4 bytes, not 5"),
        ({}, {"k": 3}, "metadata 'k' must be text, not int"),
        ({}, {3: "v"}, "metadata 3 must be text"),
        ({}, {"k": "\ud800"}, "not valid Unicode"),
    ],
)
def test_building_refuses_what_the_format_cannot_hold(
    entries: Any, metadata: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_header(entries, metadata)


def test_building_keeps_to_the_limit_on_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "MAX_HEADER_BYTES", 64)
    build_header({}, {"k": "v"})
    with pytest.raises(CheckpointError, match="shorten the metadata"):
        build_header({}, {"k": "v" * 64})
