"""Lazy reading of a checkpoint: one .safetensors file, or several behind an index.

Opening reads the headers only. Tensors and rows are read by position into the tensor's own memory;
nothing is mapped, and several threads may read at once.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .files import PositionalFile, byte_view
from .header import Header, parse_header
from .quantization import merge_metadata
from .shards import find_in_folder, read_index
from .tensors import TensorInfo

if TYPE_CHECKING:
    import torch


class Checkpoint:
    """A readable checkpoint; from ``Checkpoint.open``, in a ``with`` block to free its handles.

    ``path``: the file, or the index, that was opened. ``files``: the .safetensors file, or the
    shards. ``metadata``: of all shards together. ``tensors``: every tensor by name, in the order of
    the bytes in the files. ``notes``: what was odd and how it was read.
    """

    def __init__(self, path: Path, headers: dict[Path, Header]) -> None:
        self.path = path
        self.files = tuple(headers)
        self.metadata, self.notes = merge_metadata(
            {file: header.metadata for file, header in headers.items()}
        )
        self.tensors: dict[str, TensorInfo] = {}
        for header in headers.values():
            self.notes.extend(header.notes)
            self.tensors.update(header.tensors)
        self._found = {file: _identity(file) for file in self.files}
        self._open_files: dict[Path, PositionalFile] = {}
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a .safetensors file, a ``*.safetensors.index.json``, or a folder holding one.

        Raises CheckpointError, naming the file and the way out, for anything else and for damaged
        files.
        """
        path = Path(path)
        if path.is_dir():
            path = find_in_folder(path)
        if not path.exists():
            raise CheckpointError(f"{path} does not exist: check the path")
        if path.suffix.lower() == ".json":
            return cls(path, read_index(path))
        return cls(path, {path: parse_header(path)})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together, without the headers."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into new CPU memory.

        Raises CheckpointError for unknown names, opaque dtypes and files that cannot be read.
        """
        import torch

        info = self._info(name)
        tensor = torch.empty(info.shape, dtype=_dtype(info))
        self._fill(info, byte_view(tensor), 0)
        return tensor

    def read_rows(
        self, name: str, start: int, stop: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Read rows ``start`` to ``stop`` (slices of the first dimension) of one tensor.

        ``out``: a contiguous CPU tensor of the same dtype and trailing shape with at least
        ``stop - start`` rows. Its first rows are filled and returned; nothing is allocated.
        Raises CheckpointError as ``read`` does, ValueError for rows or an ``out`` that do not fit.
        """
        import torch

        info = self._info(name)
        dtype = _dtype(info)
        if not info.shape:
            raise ValueError(f"tensor {name!r} is a scalar and has no rows: use read()")
        if not 0 <= start <= stop <= info.shape[0]:
            raise ValueError(f"tensor {name!r} has {info.shape[0]} rows, not {start} to {stop}")
        shape = (stop - start, *info.shape[1:])
        if out is None:
            out = torch.empty(shape, dtype=dtype)
        elif (
            out.dtype != dtype
            or out.dim() != len(shape)
            or out.shape[1:] != shape[1:]
            or out.shape[0] < shape[0]
            or out.device.type != "cpu"
            or not out.is_contiguous()
        ):
            raise ValueError(
                f"tensor {name!r}: out must be a contiguous CPU {dtype} {shape}, "
                f"not {out.device.type} {out.dtype} {tuple(out.shape)}"
            )
        elif out.shape[0] > shape[0]:
            out = out[: shape[0]]
        row_bytes = info.nbytes // max(info.shape[0], 1)
        self._fill(info, byte_view(out), start * row_bytes)
        return out

    def read_bytes(
        self, name: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> bytearray | memoryview:
        """Read bytes ``start`` to ``stop`` (None: the end) of one tensor, opaque ones too.

        ``out``: writable memory of just as many bytes, filled and returned; nothing is allocated.
        """
        info = self._info(name)
        stop = info.nbytes if stop is None else stop
        if not 0 <= start <= stop <= info.nbytes:
            raise ValueError(f"tensor {name!r} has {info.nbytes} bytes, not {start} to {stop}")
        if out is not None and len(out) != stop - start:
            raise ValueError(f"tensor {name!r}: out has {len(out)} bytes, not {stop - start}")
        buffer = bytearray(stop - start) if out is None else out
        self._fill(info, memoryview(buffer), start)
        return buffer

    def stored_at(self, name: str) -> tuple[PositionalFile, int]:
        """The file a tensor's bytes are in, and the offset of the first, for a writer to copy.

        Raises CheckpointError where the file cannot be opened.
        """
        info = self._info(name)
        try:
            return self._file(info.file), info.offset
        except OSError as error:
            raise _unreadable(info, error) from error

    def check_unchanged(self) -> list[str]:
        """Notes on files that were removed since they were opened, which may be read to their end.

        Raises CheckpointError for one that was written to, or replaced: what was read of it may be
        of two states.
        """
        notes = []
        for file, was in self._found.items():
            now = _identity(file)
            if now is None:
                notes.append(f"{file} was removed meanwhile; the new file is complete")
            elif now != was:
                raise CheckpointError(
                    f"{file} was changed by another program while it was being read; nothing was "
                    "written: start again"
                )
        return notes

    def close(self) -> None:
        """Close the files, once reads under way in other threads are done. Harmless twice."""
        with self._lock:
            self._closed = True
            files = list(self._open_files.values())
            self._open_files.clear()
        for file in files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}: check the name")
        return self.tensors[name]

    def _fill(self, info: TensorInfo, buffer: memoryview, start: int) -> None:
        try:
            count = self._file(info.file).read_into(buffer, info.offset + start)
        except OSError as error:
            raise _unreadable(info, error) from error
        if count < len(buffer):
            raise CheckpointError(
                f"{info.file} ended inside tensor {info.name!r}: it was changed while it was being "
                "read; start again"
            )

    def _file(self, path: Path) -> PositionalFile:
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path} is closed")
            if path not in self._open_files:
                self._open_files[path] = PositionalFile(path, "rb")
            return self._open_files[path]


def _identity(file: Path) -> tuple[int, int, int, int] | None:
    """What changes where a file is replaced or written to; None where it is gone."""
    try:
        stat = os.stat(file)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _unreadable(info: TensorInfo, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot read tensor {info.name!r} from {info.file}: {error.strerror or error}"
    )


def _dtype(info: TensorInfo) -> torch.dtype:
    dtype = info.dtype
    if dtype is None:
        raise CheckpointError(
            f"tensor {info.name!r} in {info.file} has dtype {info.dtype_name}, which cannot be "
            "computed with; it can only be copied, so exclude it"
        )
    return dtype
