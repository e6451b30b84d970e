"""The safetensors header, built: where each tensor of a file to be written goes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CheckpointError
from .tensors import ITEM_SIZES, Entry, byte_count, dtype_name, torch_dtype

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""


class Slot(NamedTuple):
    """A tensor's place; ``offset`` counts from the end of the header."""

    dtype_name: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Torch's dtype; None is opaque."""
        return torch_dtype(self.dtype_name)


def place(entries: Mapping[str, Entry]) -> dict[str, Slot]:
    """Lay tensors end to end, larger items first, so that each starts aligned to its item size.

    Loaders that map the file get aligned tensors that way. Within one item size the given order is
    kept. Raises CheckpointError for entries the format cannot hold.
    """
    alike: dict[tuple[object, ...], Slot] = {}
    sizes: dict[int, list[tuple[str, Slot]]] = {}
    for name, entry in entries.items():
        kind = (entry[0], *entry[1], "bytes", *entry[2:])
        slot = alike.get(kind)
        if slot is None or name == "__metadata__":
            slot = alike[kind] = _slot(name, entry)
        sizes.setdefault(_item_size(slot), []).append((name, slot))
    placed: dict[str, Slot] = {}
    offset = 0
    for size in sorted(sizes, reverse=True):
        for name, slot in sizes[size]:
            placed[name] = slot._replace(offset=offset)
            offset += slot.nbytes
    return placed


def build_header(
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str],
    placed: Mapping[str, Slot] | None = None,
) -> bytes:
    """Everything before the tensors: the length, the JSON, spaces up to a multiple of 8 bytes.

    The tensors lie as ``place(entries)`` says; ``placed`` is that, where it is known. Raises
    CheckpointError for metadata that is not text and for a header above the format's limit.
    """
    content: dict[str, Any] = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise CheckpointError(
                f"metadata {key!r} must be text, not {type(value).__name__}: store it as JSON text"
            )
    if metadata:
        content["__metadata__"] = dict(metadata)
    for name, slot in (place(entries) if placed is None else placed).items():
        content[name] = {
            "dtype": slot.dtype_name,
            "shape": list(slot.shape),
            "data_offsets": [slot.offset, slot.offset + slot.nbytes],
        }
    try:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"a tensor's name or the metadata is not valid Unicode ({error}): rename it"
        ) from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the header takes {len(text):,} bytes and safetensors allows {MAX_HEADER_BYTES:,}: "
            "shorten the metadata"
        )
    return struct.pack("<Q", len(text)) + text


def checkpoint_size(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> int:
    """The exact size in bytes of the file these entries make."""
    placed = place(entries)
    data = sum(slot.nbytes for slot in placed.values())
    return len(build_header(entries, metadata, placed)) + data


def _slot(name: str, entry: Entry) -> Slot:
    if name == "__metadata__":
        raise CheckpointError("a tensor cannot be called '__metadata__': rename it")
    dtype = dtype_name(entry[0])
    if dtype is None:
        raise CheckpointError(
            f"tensor {name!r}: safetensors cannot hold {entry[0]}; it holds {', '.join(ITEM_SIZES)}"
        )
    shape = tuple(int(size) for size in entry[1])
    if any(size < 0 for size in shape):
        raise CheckpointError(f"tensor {name!r}: its shape {shape} has a negative size")
    nbytes = byte_count(dtype, shape)
    given = entry[2] if len(entry) == 3 else nbytes
    if given is None:
        raise CheckpointError(
            f"tensor {name!r}: the bytes of {dtype} {shape} are unknown; give them as the "
            "third item of its entry"
        )
    if given != nbytes and nbytes is not None:
        raise CheckpointError(
            f"tensor {name!r}: {dtype} {shape} takes {nbytes} bytes, not {given}"
        )
    return Slot(dtype, shape, given, 0)


def _item_size(slot: Slot) -> int:
    return ITEM_SIZES.get(slot.dtype_name, 1)
