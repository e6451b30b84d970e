"""Tensors kept on the disk until it is known which of them a file will have."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from ...checkpoints import CheckpointWriter, Entry
from ...checkpoints.files import byte_view
from ...errors import CheckpointError

_CHUNK = 4 << 20  # bytes


class _Place(NamedTuple):
    entry: Entry
    offset: int
    nbytes: int


class Spool:
    """A nameless file in ``folder`` that holds float32 tensors; gone when the context is left."""

    def __init__(self, folder: Path) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed on exit
        except OSError as error:
            raise CheckpointError(
                f"cannot write in {folder}: {error.strerror or error}; choose another destination"
            ) from error
        self._folder = folder
        self._places: dict[str, _Place] = {}
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor as float32. Raises CheckpointError where the disk refuses."""
        tensor = tensor.detach().to("cpu", torch.float32).contiguous()
        data = byte_view(tensor)
        try:
            self._file.seek(self._end)
            self._file.write(data)
        except OSError as error:
            raise CheckpointError(
                f"cannot write in {self._folder}: {error.strerror or error}; make room or choose "
                "another destination"
            ) from error
        entry = (torch.float32, tuple(tensor.shape))
        self._places[name] = _Place(entry, self._end, data.nbytes)
        self._end += data.nbytes

    @property
    def entries(self) -> dict[str, Entry]:
        """What is kept: dtype and shape by name, in the order it came."""
        return {name: place.entry for name, place in self._places.items()}

    def copy_to(self, writer: CheckpointWriter) -> None:
        """Write everything."""
        for name, place in self._places.items():
            self._file.seek(place.offset)
            for start in range(0, place.nbytes, _CHUNK):
                data = self._file.read(min(_CHUNK, place.nbytes - start))
                writer.write_bytes(name, start, data)
