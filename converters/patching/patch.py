"""A checkpoint with small tensors, names and metadata changed; all else is copied as bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from ...checkpoints import (
    Checkpoint,
    CheckpointWriter,
    Entry,
    checkpoint_size,
    conf_bytes,
    layers_metadata,
    parse_conf,
    read_conf,
)
from ...checkpoints.files import byte_view
from ...checkpoints.quantization import HEADER_KEY, TENSOR_SUFFIX
from ...checkpoints.tensors import ITEM_SIZES, dtype_name
from ...errors import Cancelled, CheckpointError
from ..progress import Progress
from .changes import Change, same

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CHUNK = 16 << 20  # bytes copied at once

ProgressCallback = Callable[[Progress], None]
CancelCallback = Callable[[], bool]
Value: TypeAlias = Union["Tensor", bytes]
"""What is written: a tensor, or the bytes of a U8 vector."""


class Patch:
    """What becomes of a checkpoint: collected first, shown by :meth:`changes`, then written.

    What is put, viewed or renamed to what it is already is no change, so a patch of a patched file
    is empty.

    Attributes:
        source: the checkpoint; its weights are never read, only copied.
        metadata: of the result.
    """

    def __init__(self, source: Checkpoint) -> None:
        self.source = source
        self.metadata: dict[str, str] = dict(source.metadata)
        self._values: dict[str, Value] = {}  # by the source's name where it has one
        self._entries: dict[str, Entry] = {}  # of the source's bytes, by the source's name
        self._names: dict[str, str] = {}  # source's name: result's
        self._dropped: set[str] = set()

    # ---- collecting --------------------------------------------------------------------------

    def put(self, name: str, tensor: Tensor) -> None:
        """Add a tensor, or replace the source's of that name, whatever it is renamed to."""
        self._dropped.discard(name)
        info = self.source.tensors.get(name)
        alike = info is not None and (info.dtype, info.shape) == (tensor.dtype, tuple(tensor.shape))
        if alike and bytes(self.source.read_bytes(name)) == _as_bytes(tensor):
            self._values.pop(name, None)
            return
        self._values[name] = tensor

    def view(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """Say the same bytes in another dtype of the same size, or another shape."""
        info = self.source.tensors[name]
        if (dtype, shape) != (info.dtype, info.shape):
            self._entries[name] = (dtype, shape)

    def rename(self, name: str, new: str) -> None:
        """Call the source's tensor ``name`` something else. Raises CheckpointError if it is taken.
        """
        if new == name:
            return
        if new in self.source.tensors and new not in self._dropped:
            raise CheckpointError(
                f"{self.source.path} holds both {name!r} and {new!r}: remove one of them"
            )
        self._names[name] = new

    def drop(self, name: str) -> None:
        """Leave a tensor of the source out."""
        self._values.pop(name, None)
        self._dropped.add(name)

    def describe(
        self, layers: Mapping[str, Mapping[str, Any]], *, tensors: bool = True, header: bool = True
    ) -> None:
        """Write the JSON of layers into their ``comfy_quant`` tensors and the header, equal.

        Layers of the header that are not given stay as they are.
        """
        for layer, conf in layers.items() if tensors else ():
            name = layer + TENSOR_SUFFIX
            if name not in self.source.tensors or not same(self._conf(name), dict(conf)):
                self._values[name] = conf_bytes(conf)
            else:
                self._dropped.discard(name)
        if header:
            listed = self._header()
            together = {**listed, **{layer: dict(conf) for layer, conf in layers.items()}}
            if not same(together, listed):
                self.metadata[HEADER_KEY] = layers_metadata(together)

    def undescribe(self, layers: Iterable[str]) -> None:
        """Take layers out of the header, and their ``comfy_quant`` tensors out of the file."""
        listed, gone = self._header(), set(layers)
        kept = {name: conf for name, conf in listed.items() if name not in gone}
        if kept != listed:
            self.metadata[HEADER_KEY] = layers_metadata(kept)
            if not kept:
                del self.metadata[HEADER_KEY]
        for layer in gone:
            if layer + TENSOR_SUFFIX in self.source.tensors:
                self.drop(layer + TENSOR_SUFFIX)

    def _new(self, name: str) -> str:
        return self._names.get(name, name)

    def _header(self) -> dict[str, Any]:
        layers = json.loads(self.metadata.get(HEADER_KEY, "{}")).get("layers", {})
        return dict(layers)

    def _conf(self, name: str) -> dict[str, Any]:
        return read_conf(self.source, name)

    # ---- showing -----------------------------------------------------------------------------

    @property
    def entries(self) -> dict[str, Entry]:
        """The result's tensors: the source's in their order, then new ones."""
        found: dict[str, Entry] = {}
        for name, info in self.source.tensors.items():
            if name not in self._dropped and name not in self._values:
                found[self._new(name)] = self._entries.get(name, info.entry)
            elif name not in self._dropped:
                found[self._new(name)] = _entry(self._values[name])
        for name, tensor in self._values.items():
            found.setdefault(self._new(name), _entry(tensor))
        return found

    @property
    def size(self) -> int:
        """Bytes of the result's file."""
        return checkpoint_size(self.entries, self.metadata)

    @property
    def copied(self) -> list[str]:
        """Names in the source of the tensors whose bytes are copied."""
        gone = self._dropped.union(self._values)
        return [name for name in self.source.tensors if name not in gone]

    def changes(self) -> tuple[Change, ...]:
        """What is other in the result, in the source's order of tensors, metadata last."""
        found: list[Change] = []
        tensors = self.source.tensors
        for name in (*tensors, *(n for n in self._values if n not in tensors)):
            if name.endswith(TENSOR_SUFFIX):
                continue
            if name in self._dropped:
                before = self._shown(name) if name in tensors else None
                found.append(Change(name, "removed", before, None, "tensor"))
                continue
            if name in self._values:
                before = self._shown(name) if name in tensors else None
                what = "value" if name in tensors else "added"
                found.append(Change(name, what, before, _brief(self._values[name]), "tensor"))
            elif name in self._entries:
                dtype, shape = self._entries[name][:2]
                after = f"{dtype_name(dtype)} {list(shape)}"
                found.append(Change(name, "shape", self._description(name), after, "tensor"))
            if self._new(name) != name:
                found.append(Change(name, "name", name, self._new(name), "tensor"))
        found += self._changes_of_layers()
        for key in {**self.source.metadata, **self.metadata}:
            one, other = self.source.metadata.get(key), self.metadata.get(key)
            if one != other and key != HEADER_KEY:
                found.append(Change(key, "metadata", one, other, "metadata"))
        return tuple(found)

    def _changes_of_layers(self) -> list[Change]:
        old = json.loads(self.source.metadata.get(HEADER_KEY, "{}")).get("layers", {})
        new = self._header()
        names = [n.removesuffix(TENSOR_SUFFIX) for n in (*self.source.tensors, *self._values)
                 if n.endswith(TENSOR_SUFFIX)]  # fmt: skip
        found = []
        for layer in dict.fromkeys((*names, *old, *new)):
            key = layer + TENSOR_SUFFIX
            before = self._conf(key) if key in self.source.tensors else {}
            after = before
            if key in self._values:
                after = parse_conf(_as_bytes(self._values[key]))
            elif key in self._dropped:
                after = {}
            in_tensor = _differences(before, after)
            in_header = _differences(old.get(layer, {}), new.get(layer, {}))
            both = "header and comfy_quant"
            for what, values in in_tensor.items():
                where = both if in_header.get(what) == values else "comfy_quant"
                found.append(Change(layer, what, *values, where))
            found += [Change(layer, what, *values, "header")
                      for what, values in in_header.items()
                      if in_tensor.get(what) != values]  # fmt: skip
        return found

    def _description(self, name: str) -> str:
        info = self.source.tensors[name]
        return f"{info.dtype_name} {list(info.shape)}"

    def _shown(self, name: str) -> Any:
        info = self.source.tensors[name]
        readable = info.dtype is not None and info.dtype.is_floating_point
        if readable and math.prod(info.shape) == 1:
            return _brief(self.source.read(name))
        return self._description(name)

    # ---- writing -----------------------------------------------------------------------------

    def write(
        self,
        dst: Path,
        *,
        overwrite: bool = False,
        progress: ProgressCallback | None = None,
        cancel: CancelCallback | None = None,
    ) -> list[str]:
        """Write the result to ``dst``, which may be the source itself; the source is closed.

        Returns what to know of the source now. ``dst`` is complete, or as it was.

        Raises:
            CheckpointError: a file that cannot be read or written; a source that was changed.
            Cancelled: ``cancel`` said so.
        """
        with CheckpointWriter(dst, self.entries, self.metadata, overwrite=overwrite) as writer:
            for name, value in self._values.items():
                if isinstance(value, bytes):
                    writer.write_bytes(self._new(name), 0, value)
                else:
                    writer.write(self._new(name), value)
            self._copy(writer, progress, cancel)
            self.source.close()  # a file in use cannot be replaced on Windows
            return self.source.check_unchanged()

    def _copy(
        self,
        writer: CheckpointWriter,
        progress: ProgressCallback | None,
        cancel: CancelCallback | None,
    ) -> None:
        names = self.copied
        sizes = {name: self.source.tensors[name].nbytes for name in names}
        total, done = sum(sizes.values()), 0
        buffer = memoryview(bytearray(min(_CHUNK, max(sizes.values(), default=0))))
        for name in names:
            self.source.stored_at(name)  # open: what takes the source's name later is another file
        for index, name in enumerate(names, 1):
            for first in range(0, sizes[name], _CHUNK):
                if cancel is not None and cancel():
                    raise Cancelled("cancelled; nothing was written under the destination's name")
                if progress is not None:
                    progress(Progress(name, index, len(names), done + first, total))
                self._copy_piece(writer, name, first, buffer[: sizes[name] - first])
            done += sizes[name]

    def _copy_piece(
        self, writer: CheckpointWriter, name: str, first: int, buffer: memoryview
    ) -> None:
        """Copy ``len(buffer)`` bytes of a tensor from ``first`` on; through ``buffer`` if need be.
        """
        file, offset = self.source.stored_at(name)
        new = self._new(name)
        done = writer.copy_bytes(new, first, file, offset + first, len(buffer))
        if done < len(buffer):
            rest = buffer[done:]
            self.source.read_bytes(name, first + done, first + len(buffer), out=rest)
            writer.write_bytes(new, first + done, rest)


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    return {
        key: (before.get(key), after.get(key))
        for key in {**before, **after}
        if key not in before or key not in after or not same(before[key], after[key])
    }


def _entry(value: Value) -> Entry:
    if isinstance(value, bytes):
        return "U8", (len(value),)
    return value.dtype, tuple(value.shape)


def _as_bytes(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    return bytes(byte_view(value.detach().cpu().contiguous()))


def _brief(value: Value) -> Any:
    """The value of a number, the dtype and shape of anything larger."""
    if isinstance(value, bytes):
        return f"U8 [{len(value)}]"
    shape, name = list(value.shape), str(dtype_name(value.dtype))
    if value.numel() == 1 and value.is_floating_point() and ITEM_SIZES[name] > 1:
        text = f"{float(value):.6g}"
        return text if not shape else f"{text} {shape}"
    return f"{name} {shape}"
