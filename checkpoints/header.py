"""The safetensors header, read: 8 bytes of length (little-endian), a JSON object, then the data.

The parser is our own because ``safetensors.safe_open`` maps the whole file, and mapped pages count
as this process's memory while they are streamed. Parsing the header here leaves the rows to
positional reads (see ``files``). It accepts and rejects what the library does, except that

- a dtype torch cannot compute with, or this version has never heard of, makes an *opaque* tensor:
  it can be copied, not read;
- a metadata value that is not text is kept as its JSON text, with a note;
- a name that occurs twice is refused, where the library keeps one of the two in silence.
"""

from __future__ import annotations

import json
import logging
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError
from .placement import MAX_HEADER_BYTES, build_header
from .strict_json import parse_json
from .tensors import MAX_BYTES, TensorInfo, byte_count

__all__ = ["Header", "TensorInfo", "build_header", "parse_header", "read_header"]

logger = logging.getLogger(__name__)


class Header(NamedTuple):
    """A parsed header; ``tensors`` in the order of their bytes, ``notes`` on what was repaired."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    notes: list[str]


def read_header(path: str | Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Read and check the header of one .safetensors file.

    Returns the metadata and the tensors in the order of their bytes. Raises CheckpointError, naming
    the file, the tensor and the way out, for anything the format does not allow.
    """
    header = parse_header(path)
    return header.metadata, header.tensors


def parse_header(path: str | Path) -> Header:
    """``read_header`` with the notes on what was repaired (they are logged too)."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = _header_length(path, size, file.read(64))
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    entries = parse_json(text, f"the header of {path}")
    if not isinstance(entries, dict):
        raise _damaged(path, f"its header is a JSON {type(entries).__name__}, not an object")
    metadata, notes = _metadata(path, entries.pop("__metadata__", None))
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    _check_layout(path, tensors, 8 + length, size)
    for note in notes:
        logger.warning("%s", note)
    return Header(metadata, {info.name: info for info in tensors}, notes)


_OTHER_KINDS = (
    (b"PK", "a zip archive, most likely a torch pickle (.pt, .pth, .ckpt)", "convert it first"),
    (b"\x80", "a Python pickle, most likely an old torch file (.pt, .ckpt)", "convert it first"),
    (b"GGUF", "a GGUF file, which is quantized already", "use the original safetensors file"),
    (b"version https://git-lfs", "a Git LFS pointer to the file", "fetch it with 'git lfs pull'"),
    (b"<", "a web page, so the download went wrong", "download the file again"),
)


def _header_length(path: Path, size: int, head: bytes) -> int:
    if size == 0:
        raise CheckpointError(f"{path} is empty: the download or copy failed; fetch it again")
    for magic, kind, way_out in _OTHER_KINDS:
        # A header's length can begin with any of these bytes; a brace follows it.
        if head.startswith(magic) and not head[8:].lstrip().startswith(b"{"):
            raise CheckpointError(f"{path} is not a safetensors file but {kind}; {way_out}")
    if size < 8:
        raise CheckpointError(
            f"{path} has only {size} bytes, too few for a safetensors file; fetch it again"
        )
    length: int = struct.unpack("<Q", head[:8])[0]
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged: it announces a header of "
            f"{length:,} bytes where {MAX_HEADER_BYTES:,} are allowed; is it the right file?"
        )
    if 8 + length > size:
        raise _cut_short(path, 8 + length, size)
    return length


def _metadata(path: Path, stored: Any) -> tuple[dict[str, str], list[str]]:
    if stored is None:
        return {}, []
    if not isinstance(stored, dict):
        raise _damaged(path, f"its __metadata__ is a JSON {type(stored).__name__}, not an object")
    metadata: dict[str, str] = {}
    notes = []
    for key, value in stored.items():
        if isinstance(value, str):
            metadata[key] = value
        else:
            metadata[key] = json.dumps(value, ensure_ascii=False)
            notes.append(f"{path}: metadata {key!r} is not text as it must be; kept as JSON text")
    return metadata, notes


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(path, f"the entry of tensor {name!r} lacks dtype, shape or data_offsets")
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype_name, str):
        raise _damaged(path, f"the dtype of tensor {name!r} is {_short(dtype_name)}, not a name")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise _damaged(path, f"the shape of tensor {name!r} is {_short(shape)}, not sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _damaged(path, f"the data_offsets of tensor {name!r} are {_short(offsets)}")
    start, stop = offsets
    if stop < start:
        raise _damaged(path, f"tensor {name!r} ends (at {stop}) before it starts (at {start})")
    if math.prod(size for size in shape if size) > MAX_BYTES:
        raise _damaged(path, f"the shape of tensor {name!r}, {_short(shape)}, is impossibly large")
    expected = byte_count(dtype_name, tuple(shape))
    if expected is not None and expected != stop - start:
        raise _damaged(
            path,
            f"tensor {name!r} is {dtype_name} {_short(shape)}, which takes {expected:,} bytes, but "
            f"its data_offsets give it {stop - start:,}",
        )
    return TensorInfo(name, dtype_name, tuple(shape), stop - start, path, data_start + start)


def _check_layout(path: Path, tensors: list[TensorInfo], position: int, size: int) -> None:
    for info in tensors:
        if info.offset < position:
            raise _damaged(path, f"tensor {info.name!r} overlaps the one before it")
        if info.offset > position:
            gap = info.offset - position
            raise _damaged(path, f"{gap:,} bytes before tensor {info.name!r} belong to no tensor")
        position += info.nbytes
    if position > size:
        raise _cut_short(path, position, size)
    if position < size:
        raise _damaged(path, f"{size - position:,} bytes after the last tensor belong to no tensor")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_BYTES


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or was written by a faulty program: {what}; fetch or export it again"
    )


def _cut_short(path: Path, expected: int, size: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut short: it has {size:,} of at least {expected:,} bytes, so the download or "
        "copy did not finish; fetch it again"
    )
