"""Where tensors come from and where they go: a file, a module in memory, or a model inside ComfyUI.

``Checkpoint`` and ``CheckpointWriter`` are a :class:`Source` and a :class:`Sink`; so are the two
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from ..checkpoints import Entry

Entries = Mapping[str, Entry]


class Described(Protocol):
    """What is known of a tensor without reading it."""

    @property
    def dtype(self) -> torch.dtype | None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def entry(self) -> Entry: ...


class Source(Protocol):
    """Named tensors that can be read by rows, from several threads."""

    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def tensors(self) -> Mapping[str, Described]: ...
    def read(self, name: str, /) -> Tensor: ...
    def read_rows(
        self, name: str, start: int, stop: int, /, out: Tensor | None = None
    ) -> Tensor: ...
    def read_bytes(self, name: str, start: int, stop: int, /) -> bytearray | memoryview: ...


class Sink(Protocol):
    """Named tensors of announced dtype and shape, written whole or by rows by several threads."""

    def write(self, name: str, tensor: Tensor, /) -> None: ...
    def write_rows(self, name: str, start: int, tensor: Tensor, /) -> None: ...
    def write_bytes(
        self, name: str, offset: int, data: bytes | bytearray | memoryview, /
    ) -> None: ...


OpenSink = Callable[[Entries, Mapping[str, str]], AbstractContextManager[Sink]]


@dataclass(frozen=True)
class Description:
    """A tensor's dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def entry(self) -> Entry:
        return self.dtype, self.shape


class MemorySource:
    """Tensors of a state dict."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None):
        self._tensors = tensors
        self.metadata = dict(metadata or {})
        self.tensors = {n: Description(t.dtype, tuple(t.shape)) for n, t in tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor itself, detached."""
        return self._tensors[name].detach()

    def read_rows(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Rows ``start:stop``, a view (``out`` is not needed)."""
        return self.read(name)[start:stop]

    def read_bytes(self, name: str, start: int, stop: int) -> bytearray:
        """Bytes ``start:stop`` of the tensor's memory."""
        flat = self.read(name).contiguous().reshape(-1).view(torch.uint8)
        return bytearray(flat[start:stop].cpu().numpy().tobytes())


class MemorySink:
    """Collects tensors in memory; ``tensors`` is complete once the context is left."""

    def __init__(self, entries: Entries, metadata: Mapping[str, str], device: str = "cpu"):
        self.metadata = dict(metadata)
        self.tensors = {
            name: torch.empty(entry[1], dtype=entry[0], device=device)
            for name, entry in entries.items()
            if isinstance(entry[0], torch.dtype)
        }

    def __enter__(self) -> MemorySink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.tensors.clear()

    def write(self, name: str, tensor: Tensor) -> None:
        """Copy a whole tensor."""
        self.tensors[name].copy_(tensor)

    def write_rows(self, name: str, start: int, tensor: Tensor) -> None:
        """Copy rows from ``start`` on."""
        self.tensors[name][start : start + tensor.shape[0]].copy_(tensor)

    def write_bytes(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy raw bytes."""
        flat = self.tensors[name].view(-1).view(torch.uint8)
        flat[offset : offset + len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
