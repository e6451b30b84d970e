"""Streaming, atomic writing of one .safetensors file.

The header is computed from the entries before the first byte, so tensors go to their place in the file in any order, in
pieces, from any thread, and nothing is held back. The file is written under a temporary name beside the destination and
takes the destination's name only when every byte is there and on the disk.
"""

from __future__ import annotations

import bisect
import errno
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import torch

from ..errors import CheckpointError, DestinationExistsError
from .files import PositionalFile, byte_view
from .header import Entry, Slot, build_header, layout
from .partial import create_partial, discard_partial, publish, remove_stale_partials

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes ``entries`` to ``path``; a context manager that leaves a complete file or, on any exception, none.

    Entering removes what killed writers of the same file left behind, checks the free space and creates the temporary
    file; leaving checks that all was written, waits for the disk and renames. ``write``, ``write_rows`` and
    ``write_bytes`` may be called from several threads; writing a place twice keeps the later bytes.
    """

    def __init__(
        self,
        path: str | Path,
        entries: Mapping[str, Entry],
        metadata: Mapping[str, str],
        overwrite: bool = False,
    ) -> None:
        """``entries``: dtype (torch's or safetensors' name) and shape of every tensor, by name.

        Raises CheckpointError for a destination, an entry or metadata that cannot be written, and
        DestinationExistsError where ``path`` exists and ``overwrite`` is not given. Nothing is created yet.
        """
        self.path = Path(path)
        self.overwrite = overwrite
        self.removed_partials: list[Path] = []
        """Temporary files of killed writers that were removed on entering."""
        self._slots = layout(entries)
        self._header = build_header(entries, metadata)
        self.nbytes = len(self._header) + sum(slot.nbytes for slot in self._slots.values())
        """Size of the finished file in bytes."""
        self._written = {name: _Coverage() for name in self._slots}
        self._lock = threading.Lock()
        self._partial: Path | None = None
        self._file: PositionalFile | None = None
        self._check_destination()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a whole tensor; its dtype and shape must be the entry's. Any device, any strides."""
        slot = self._slot(name)
        self._check_tensor(name, slot, tensor, slot.shape)
        self._put(name, slot, 0, _bytes_of(tensor))

    def write_rows(self, name: str, start_row: int, tensor: torch.Tensor) -> None:
        """Write rows of a tensor (slices of its first dimension), the first of them at ``start_row``."""
        slot = self._slot(name)
        if not slot.shape or tensor.dim() == 0:
            raise ValueError(f"tensor {name!r}: a scalar has no rows; use write()")
        self._check_tensor(name, slot, tensor, (tensor.shape[0], *slot.shape[1:]))
        if not 0 <= start_row <= start_row + tensor.shape[0] <= slot.shape[0]:
            raise ValueError(
                f"tensor {name!r} has {slot.shape[0]} rows; {tensor.shape[0]} do not fit at row {start_row}"
            )
        row_bytes = slot.nbytes // slot.shape[0] if slot.shape[0] else 0
        self._put(name, slot, start_row * row_bytes, _bytes_of(tensor))

    def write_bytes(self, name: str, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write bytes of a tensor as they are, the first at ``offset`` within the tensor; for opaque dtypes."""
        slot = self._slot(name)
        data = memoryview(buffer).cast("B")
        if not 0 <= offset <= offset + len(data) <= slot.nbytes:
            raise ValueError(
                f"tensor {name!r} has {slot.nbytes} bytes; {len(data)} do not fit at {offset}"
            )
        self._put(name, slot, offset, data)

    def __enter__(self) -> CheckpointWriter:
        self._check_destination()
        self.removed_partials = remove_stale_partials(self.path)
        try:
            self._check_space()
            self._partial = create_partial(self.path)
            self._file = PositionalFile(self._partial, "r+b")
            os.truncate(self._partial, self.nbytes)
            self._file.write_from(memoryview(self._header), 0)
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                self._fail(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._commit()
        except OSError as failure:
            self._fail(failure)
        finally:
            self._discard()

    def _commit(self) -> None:
        missing = [
            name for name, slot in self._slots.items() if self._written[name].total < slot.nbytes
        ]
        if missing:
            first = missing[0]
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{self.path} was not written: tensor {first!r}{more} incomplete "
                f"({self._written[first].total:,} of {self._slots[first].nbytes:,} bytes); this is a fault of the "
                "program, please report it"
            )
        assert self._file is not None and self._partial is not None
        self._file.sync()
        self._file.close()
        publish(self._partial, self.path, self.overwrite)

    def _discard(self) -> None:
        """Close, and remove the temporary file where it still is. Never raises OSError."""
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            logger.warning("closing %s: %s", self._partial, error)
        finally:
            self._file = None
            if self._partial is not None:
                discard_partial(self._partial)
                self._partial = None

    def _check_destination(self) -> None:
        folder = self.path.parent
        if self.path.is_dir():
            raise CheckpointError(f"{self.path} is a folder: give the name of a file in it")
        if not folder.is_dir():
            raise CheckpointError(
                f"cannot write {self.path}: the folder {folder} does not exist; create it first"
            )
        if not self.overwrite and os.path.lexists(self.path):
            raise DestinationExistsError(
                f"{self.path} exists: choose another name, or allow overwriting"
            )

    def _check_space(self) -> None:
        disk = shutil.disk_usage(self.path.parent)
        if disk.total and disk.free < self.nbytes:
            raise CheckpointError(
                f"cannot write {self.path}: it takes {_gigabytes(self.nbytes)} and the disk has {_gigabytes(disk.free)} "
                "free; make room or choose another destination"
            )

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            raise ValueError(f"tensor {name!r} is not among the entries of {self.path}")
        return self._slots[name]

    def _check_tensor(
        self, name: str, slot: Slot, tensor: torch.Tensor, shape: tuple[int, ...]
    ) -> None:
        if slot.dtype is None:
            raise ValueError(
                f"tensor {name!r} has the opaque dtype {slot.dtype_name}; use write_bytes()"
            )
        if tensor.dtype != slot.dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"tensor {name!r} was announced as {slot.dtype} {shape}, not {tensor.dtype} {tuple(tensor.shape)}"
            )

    def _put(self, name: str, slot: Slot, start: int, data: memoryview) -> None:
        if self._file is None:
            raise ValueError(f"{self.path} is not open for writing: use the writer in a with block")
        try:
            self._file.write_from(data, len(self._header) + slot.offset + start)
        except OSError as error:
            self._fail(error)
        with self._lock:
            self._written[name].add(start, start + len(data))

    def _fail(self, error: OSError) -> NoReturn:
        reasons = {
            errno.ENOSPC: "the disk is full; make room or choose another destination",
            getattr(
                errno, "EDQUOT", None
            ): "your disk quota is used up; make room or choose another destination",
            errno.EFBIG: f"the file system cannot hold a file of {_gigabytes(self.nbytes)}; choose another destination",
            errno.EACCES: "access was denied; close programs that use it, or check the folder's permissions",
        }
        reason = (
            reasons.get(error.errno) or f"{error.strerror or error}; choose another destination"
        )
        raise CheckpointError(f"cannot write {self.path}: {reason}") from error


class _Coverage:
    """Which bytes of a tensor have been written: disjoint ranges, as their ascending bounds."""

    def __init__(self) -> None:
        self._bounds: list[int] = []

    def add(self, start: int, stop: int) -> None:
        if start == stop:
            return
        low, high = bisect.bisect_left(self._bounds, start), bisect.bisect_right(self._bounds, stop)
        # An even position lies outside every range, so that end of the new range stays a bound.
        self._bounds[low:high] = [start] * (low % 2 == 0) + [stop] * (high % 2 == 0)

    @property
    def total(self) -> int:
        return sum(self._bounds[1::2]) - sum(self._bounds[::2])


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's values as row-major bytes; no copy for a contiguous CPU tensor."""
    return byte_view(tensor.detach().cpu().resolve_conj().resolve_neg().contiguous())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e9:.3f} GB"
