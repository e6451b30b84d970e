"""A source seen as a model: every tensor with the values it stands for, quantized layers decoded on
reading.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from .source import Described, Source
from .stored import StoredLayer, empty_parts, iter_plain, parts_of, stored_layers

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class ModelView:
    """The logical tensors of ``source``.

    Attributes:
        source: where the bytes come from.
        stored: the layers that are quantized already, by name.
        names: the logical tensors in file order; scales and JSON of quantized layers are not among
            them.
        notes: what was odd about the source.

    With ``problems``, layers that cannot be read count as plain tensors, and it takes the reason.
    """

    def __init__(self, source: Source, problems: dict[str, str] | None = None) -> None:
        found = stored_layers(source, problems)
        self.source = source
        self.stored = found.layers
        self.notes = found.notes
        self.names = list(iter_plain(source, found))
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self._decoded: tuple[str, Tensor] | None = None

    def described(self, name: str) -> Described:
        """Dtype, shape and bytes of a tensor as stored."""
        return self.source.tensors[name]

    def stored_layer(self, name: str) -> StoredLayer | None:
        """The quantized layer whose weight ``name`` is, if it is one."""
        layer, _, suffix = name.rpartition(".")
        return self.stored.get(layer) if suffix == "weight" else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Logical shape: unpacked and unpadded where the layer is quantized."""
        stored = self.stored_layer(name)
        if stored is None:
            return tuple(self.described(name).shape)
        if name not in self._shapes:
            parts = stored.format.normalise(empty_parts(self.source, stored.parts), stored.conf)
            self._shapes[name] = stored.format.orig_shape(parts, stored.conf)
        return self._shapes[name]

    def is_weight(self, name: str) -> bool:
        """Whether the tensor holds floating values that a format could hold instead."""
        if self.stored_layer(name) is not None:
            return True
        return self.described(name).dtype in (*_FLOATING, *_FLOAT8)

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor as stored, scales included."""
        stored = self.stored_layer(name)
        names = [name] if stored is None else stored.parts.values()
        return sum(self.described(part).nbytes for part in names)

    def buffer_dtype(self, name: str) -> torch.dtype | None:
        """Dtype of the rows :meth:`read_rows` gives."""
        return torch.float32 if self.stored_layer(name) else self.described(name).dtype

    def read_rows(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Rows ``start:stop`` of a tensor's values; ``out`` of :meth:`buffer_dtype` may be used."""
        stored = self.stored_layer(name)
        if stored is None:
            return self.source.read_rows(name, start, stop, out=out)
        with self._lock:
            if self._decoded is None or self._decoded[0] != name:
                values = stored.format.decode(parts_of(self.source, stored), stored.conf)
                self._decoded = (name, values)
            return self._decoded[1][start:stop]

    def release(self) -> None:
        """Forget the decoded layer."""
        self._decoded = None
