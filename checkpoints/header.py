"""The safetensors header: 8 bytes of length (little-endian), a JSON object, then the tensors' bytes end to end.

The parser is our own because ``safetensors.safe_open`` maps the whole file, and mapped pages count as this process's
memory while they are being streamed. Parsing the header here leaves the rows to positional reads (see ``files``).
What the library accepts is accepted, what it rejects is rejected, except that
- a dtype this torch cannot hold (or this version has never heard of) makes an *opaque* tensor: it can be copied, not read;
- a metadata value that is not a string is kept as its JSON text, with a note;
- a name that occurs twice is refused, where the library keeps one of the two in silence.
"""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from ..errors import CheckpointError

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""

_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, attribute)
    for name, attribute in _TORCH_NAMES.items()
    if hasattr(torch, attribute)
}
"""safetensors' dtype names and the torch dtypes that hold them."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SUB_BYTE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # known to the format, opaque to us
_MAX_BYTES = 2**63 - 1  # what an int64 offset reaches; torch's sizes and strides end there too

Entry: TypeAlias = (
    tuple[torch.dtype | str, tuple[int, ...]] | tuple[torch.dtype | str, tuple[int, ...], int]
)
"""What is to be written: dtype (or its safetensors name), shape and, for unknown dtypes only, the size in bytes."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it; ``dtype`` None means opaque (copied as bytes, never interpreted)."""

    name: str
    dtype_name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int
    """First byte, counted from the start of the file."""

    @property
    def entry(self) -> Entry:
        """What ``CheckpointWriter`` takes to copy this tensor as it stands."""
        return (self.dtype_name, self.shape, self.nbytes)


class Header(NamedTuple):
    """A parsed header: metadata, tensors in the order of their bytes, and what had to be repaired."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    notes: list[str]


class Slot(NamedTuple):
    """Where a tensor goes in a file to be written; ``offset`` counts from the end of the header."""

    dtype_name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    nbytes: int
    offset: int


def read_header(path: str | Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Read and check the header of one .safetensors file.

    Returns the metadata and the tensors in the order of their bytes.
    Raises CheckpointError, naming the file and the tensor, for anything the format does not allow.
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
            head = file.read(64)
            length = _header_length(path, size, head)
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


def parse_json(text: bytes, what: str) -> Any:
    """Strict JSON from UTF-8 bytes: no duplicate keys, no NaN. Raises CheckpointError naming ``what``."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            double = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {double!r} occurs twice")
        return result

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not valid JSON ({error}): the file is damaged or was written by a faulty program; "
            "fetch or export it again"
        ) from error


def layout(entries: Mapping[str, Entry]) -> dict[str, Slot]:
    """Place tensors one after another, larger items first, so that each one starts aligned to its item size.

    Within one item size the given order is kept. Raises CheckpointError for entries the format cannot hold.
    """
    slots: list[tuple[int, str, Slot]] = []
    for name, entry in entries.items():
        if name == "__metadata__":
            raise CheckpointError("a tensor cannot be called '__metadata__': rename it")
        shape = tuple(int(size) for size in entry[1])
        dtype_name, dtype = _resolve(name, entry[0])
        nbytes = _nbytes(dtype_name, dtype, shape)
        if nbytes is None:
            if len(entry) < 3:
                raise CheckpointError(
                    f"tensor {name!r}: the size of a {dtype_name} {list(shape)} is unknown; give it as the third "
                    "element of its entry"
                )
            nbytes = entry[2]
        slots.append(
            (dtype.itemsize if dtype else 1, name, Slot(dtype_name, dtype, shape, nbytes, 0))
        )
    slots.sort(key=lambda slot: -slot[0])
    placed: dict[str, Slot] = {}
    offset = 0
    for _, name, slot in slots:
        placed[name] = slot._replace(offset=offset)
        offset += slot.nbytes
    return placed


def build_header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """Everything before the first tensor's bytes: the length, the JSON, and spaces up to a multiple of 8.

    The tensors lie as ``layout(entries)`` says. Raises CheckpointError for a key or value that is not a string, and for
    a header above the format's limit.
    """
    content: dict[str, Any] = {}
    if metadata:
        for key, value in metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise CheckpointError(
                    f"metadata {key!r} must be text, not {type(value).__name__}: store it as JSON text"
                )
        content["__metadata__"] = dict(metadata)
    for name, slot in layout(entries).items():
        content[name] = {
            "dtype": slot.dtype_name,
            "shape": list(slot.shape),
            "data_offsets": [slot.offset, slot.offset + slot.nbytes],
        }
    try:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"a name or metadata value is not valid Unicode ({error}): rename it"
        ) from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the header would take {len(text):,} bytes and safetensors allows {MAX_HEADER_BYTES:,}: shorten the metadata"
        )
    return struct.pack("<Q", len(text)) + text


def checkpoint_size(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> int:
    """The exact size in bytes of the file these entries make."""
    return len(build_header(entries, metadata)) + sum(
        slot.nbytes for slot in layout(entries).values()
    )


_OTHER_KINDS = (
    (
        b"PK",
        "a zip archive, most likely a torch pickle (.pt, .pth, .ckpt)",
        "convert it to safetensors first",
    ),
    (b"\x80", "a Python pickle, most likely an old torch file", "convert it to safetensors first"),
    (b"GGUF", "a GGUF file", "GGUF is already quantized; use the original safetensors file"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "fetch the file with `git lfs pull`",
    ),
    (b"<", "a web page, so the download failed", "download the file again"),
)


def _header_length(path: Path, size: int, head: bytes) -> int:
    if size == 0:
        raise CheckpointError(
            f"{path} is empty: the download or copy did not finish; fetch it again"
        )
    for magic, kind, way_out in _OTHER_KINDS:
        # A header's length can begin with any of these bytes; the JSON after it begins with a brace.
        if head.startswith(magic) and not head[8:].lstrip().startswith(b"{"):
            raise CheckpointError(f"{path} is not a safetensors file: it is {kind}; {way_out}")
    if size < 8:
        raise CheckpointError(
            f"{path} has only {size} bytes, too short for a safetensors file; fetch it again"
        )
    length: int = struct.unpack("<Q", head[:8])[0]
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged: its first 8 bytes announce a header of {length:,} bytes, "
            f"the limit is {MAX_HEADER_BYTES:,}; check that it is the right file"
        )
    if 8 + length > size:
        raise _truncated(path, 8 + length, size)
    return length


def _metadata(path: Path, stored: Any) -> tuple[dict[str, str], list[str]]:
    if stored is None:
        return {}, []
    if not isinstance(stored, dict):
        raise _damaged(path, f"its __metadata__ is a JSON {type(stored).__name__}, not an object")
    metadata: dict[str, str] = {}
    notes = []
    for key, value in stored.items():
        if not isinstance(value, str):
            notes.append(
                f"{path}: metadata {key!r} is not text as the format requires; kept as its JSON text"
            )
            value = json.dumps(value, ensure_ascii=False)
        metadata[key] = value
    return metadata, notes


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(
            path, f"the header's entry of tensor {name!r} lacks dtype, shape or data_offsets"
        )
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype_name, str):
        raise _damaged(path, f"the dtype of tensor {name!r} is {dtype_name!r}, not a name")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise _damaged(
            path, f"the shape of tensor {name!r} is {_short(shape)}, not a list of sizes"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _damaged(
            path, f"the data_offsets of tensor {name!r} are {_short(offsets)}, not two positions"
        )
    start, stop = offsets
    if stop < start:
        raise _damaged(path, f"tensor {name!r} ends (at {stop}) before it starts (at {start})")
    if math.prod(size for size in shape if size) > _MAX_BYTES:
        raise _damaged(path, f"the shape of tensor {name!r}, {_short(shape)}, is impossibly large")
    dtype = DTYPES.get(dtype_name)
    expected = _nbytes(dtype_name, dtype, tuple(shape))
    if expected is not None and expected != stop - start:
        raise _damaged(
            path,
            f"tensor {name!r} is {dtype_name} {_short(shape)}, which takes {expected:,} bytes, but {stop - start:,} are "
            "stored: its dtype, shape or data_offsets are wrong",
        )
    return TensorInfo(name, dtype_name, dtype, tuple(shape), stop - start, path, data_start + start)


def _check_layout(path: Path, tensors: list[TensorInfo], start: int, size: int) -> None:
    position = start
    for info in tensors:
        if info.offset < position:
            raise _damaged(path, f"tensor {info.name!r} overlaps the one before it")
        if info.offset > position:
            raise _damaged(
                path,
                f"{info.offset - position:,} bytes before tensor {info.name!r} belong to no tensor",
            )
        position += info.nbytes
    if position > size:
        raise _truncated(path, position, size)
    if position < size:
        raise _damaged(path, f"{size - position:,} bytes after the last tensor belong to no tensor")


def _nbytes(dtype_name: str, dtype: torch.dtype | None, shape: tuple[int, ...]) -> int | None:
    bits = 8 * dtype.itemsize if dtype else _SUB_BYTE_BITS.get(dtype_name)
    return None if bits is None else -(-math.prod(shape) * bits // 8)


def _resolve(name: str, dtype: torch.dtype | str) -> tuple[str, torch.dtype | None]:
    if isinstance(dtype, str):
        return dtype, DTYPES.get(dtype)
    if dtype not in _DTYPE_NAMES:
        raise CheckpointError(
            f"tensor {name!r}: safetensors has no name for {dtype}; convert it to one of {', '.join(DTYPES)}"
        )
    return _DTYPE_NAMES[dtype], dtype


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_BYTES


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or was written by a faulty program: {what}; fetch or export it again"
    )


def _truncated(path: Path, expected: int, size: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut short: it should have at least {expected:,} bytes and has {size:,}, so the download or copy did "
        "not finish; fetch it again"
    )
