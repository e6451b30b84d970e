"""Streaming, atomic writing of one .safetensors file.

The header is computed from the entries before the first byte, so tensors go to their place in any
order, in pieces, from any thread, and nothing is held back. The file is written under a temporary
name beside the destination and takes the destination's name when every byte is on the disk.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from ..errors import CheckpointError, DestinationExistsError
from .files import PositionalFile, byte_view
from .partial import create_partial, discard_partial, publish, remove_stale_partials
from .placement import Slot, build_header, place
from .tensors import Entry

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_SYNC_EVERY = 256 * 2**20  # bytes


class CheckpointWriter:
    """Writes ``entries`` to ``path``: a context manager that leaves a complete file, or none.

    Entering removes what killed writers of the same file left behind (``removed_partials``), checks
    the free space and creates the temporary file. Leaving checks that all was written, waits for
    the disk and renames; after any exception it removes the temporary file instead. ``write``,
    ``write_rows`` and ``write_bytes`` may be called from several threads; of what is written twice
    the later stays. ``nbytes`` is the size of the finished file.
    """

    def __init__(
        self,
        path: str | Path,
        entries: Mapping[str, Entry],
        metadata: Mapping[str, str],
        overwrite: bool = False,
    ) -> None:
        """``entries``: dtype (torch's, or safetensors' name) and shape of each tensor, by name.

        Raises CheckpointError for a destination, an entry or metadata that cannot be written,
        DestinationExistsError where ``path`` exists and ``overwrite`` is not given. Nothing is
        created yet.
        """
        self.path = Path(path)
        self.overwrite = overwrite
        self.removed_partials: list[Path] = []
        self._slots = place(entries)
        self._header = build_header(entries, metadata)
        self.nbytes = len(self._header) + sum(slot.nbytes for slot in self._slots.values())
        self._written = {name: _Coverage() for name in self._slots}
        self._lock = threading.Lock()
        self._partial: Path | None = None
        self._file: PositionalFile | None = None
        self._unsynced = 0
        self._syncing: threading.Thread | None = None
        self._sync_error: OSError | None = None
        self._check_destination()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a whole tensor of the announced dtype and shape, from any device and any strides.

        Raises ValueError for a tensor that is not as announced, CheckpointError where the disk
        refuses.
        """
        slot = self._slot(name)
        self._check_tensor(name, slot, tensor, slot.shape)
        self._put(name, slot, 0, _bytes_of(tensor))

    def write_rows(self, name: str, start_row: int, tensor: torch.Tensor) -> None:
        """Write rows (slices of the first dimension), the first at ``start_row``; else as write."""
        slot = self._slot(name)
        if not slot.shape or tensor.dim() == 0:
            raise ValueError(f"tensor {name!r}: a scalar has no rows; use write()")
        rows = tensor.shape[0]
        self._check_tensor(name, slot, tensor, (rows, *slot.shape[1:]))
        if not 0 <= start_row <= slot.shape[0] - rows:
            raise ValueError(
                f"tensor {name!r} has {slot.shape[0]} rows; {rows} do not fit at row {start_row}"
            )
        row_bytes = slot.nbytes // max(slot.shape[0], 1)
        self._put(name, slot, start_row * row_bytes, _bytes_of(tensor))

    def write_bytes(self, name: str, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write bytes as they are, the first at ``offset`` within the tensor, for opaque dtypes."""
        slot = self._slot(name)
        data = memoryview(buffer).cast("B")
        if not 0 <= offset <= slot.nbytes - len(data):
            raise ValueError(
                f"tensor {name!r} has {slot.nbytes} bytes; {len(data)} do not fit at {offset}"
            )
        self._put(name, slot, offset, data)

    def copy_bytes(
        self, name: str, offset: int, file: PositionalFile, start: int, count: int
    ) -> int:
        """Copy ``count`` bytes of another file from ``start`` to ``offset`` within a tensor.

        Returns how many were copied: fewer where the system does not copy between these files, or
        where the other one ends. ``write_bytes`` takes the rest.
        """
        slot = self._slot(name)
        if not 0 <= offset <= slot.nbytes - count:
            raise ValueError(
                f"tensor {name!r} has {slot.nbytes} bytes; {count} do not fit at {offset}"
            )
        own = self._file
        if own is None:
            raise ValueError(f"{self.path} is not open for writing: use a with block")
        first = slot.offset + offset
        try:
            done = own.copy_from(file, start, len(self._header) + first, count)
        except OSError as error:
            self._fail(error)
        self._arrived(name, own, offset, offset + done)
        return done

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
        if self._file is None or self._partial is None:
            raise ValueError(f"{self.path} is not open for writing")
        missing = [
            name for name, slot in self._slots.items() if self._written[name].total < slot.nbytes
        ]
        if missing:
            name = missing[0]
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{self.path} was not written: tensor {name!r}{more} incomplete, "
                f"{self._written[name].total:,} of {self._slots[name].nbytes:,} bytes arrived; "
                "this is a fault of the program, please report it"
            )
        if self._syncing is not None:
            self._syncing.join()
        if self._sync_error is not None:
            raise self._sync_error
        self._file.sync()
        self._file.close()
        publish(self._partial, self.path, self.overwrite)

    def _discard(self) -> None:
        """Close, and remove the temporary file where it is still there. Never raises OSError."""
        file, partial = self._file, self._partial
        self._file = self._partial = None
        try:
            if file is not None:
                file.close()
        except OSError as error:
            logger.warning("closing %s: %s", partial, error)
        finally:
            if partial is not None:
                discard_partial(partial)

    def _check_destination(self) -> None:
        folder = self.path.parent
        if self.path.is_dir():
            raise CheckpointError(f"{self.path} is a folder: give the name of a file in it")
        if not folder.is_dir():
            raise CheckpointError(
                f"cannot write {self.path}: there is no folder {folder}; create it first"
            )
        if not self.overwrite and os.path.lexists(self.path):
            raise DestinationExistsError(
                f"{self.path} exists: choose another name, or allow overwriting"
            )

    def _check_space(self) -> None:
        disk = shutil.disk_usage(self.path.parent)
        if disk.total and disk.free < self.nbytes:
            raise CheckpointError(
                f"cannot write {self.path}: it takes {_gigabytes(self.nbytes)} and the disk has "
                f"{_gigabytes(disk.free)} free; make room or choose another destination"
            )

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            raise ValueError(f"tensor {name!r} is not among the entries of {self.path}")
        return self._slots[name]

    def _check_tensor(
        self, name: str, slot: Slot, tensor: torch.Tensor, shape: tuple[int, ...]
    ) -> None:
        if slot.dtype is None:
            raise ValueError(f"tensor {name!r} is opaque ({slot.dtype_name}): use write_bytes()")
        if tensor.dtype != slot.dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"tensor {name!r} was announced as {slot.dtype} {slot.shape}; "
                f"{tensor.dtype} {tuple(tensor.shape)} does not fit"
            )

    def _put(self, name: str, slot: Slot, start: int, data: memoryview) -> None:
        file = self._file
        if file is None:
            raise ValueError(f"{self.path} is not open for writing: use a with block")
        try:
            file.write_from(data, len(self._header) + slot.offset + start)
        except OSError as error:
            self._fail(error)
        self._arrived(name, file, start, start + len(data))

    def _arrived(self, name: str, file: PositionalFile, start: int, stop: int) -> None:
        with self._lock:
            self._written[name].add(start, stop)
            self._unsynced += stop - start
            idle = self._syncing is None or not self._syncing.is_alive()
            if self._unsynced >= _SYNC_EVERY and idle:
                self._unsynced = 0
                self._syncing = threading.Thread(target=self._sync_early, args=(file,))
                self._syncing.start()

    def _sync_early(self, file: PositionalFile) -> None:
        # The disk works while the next tensors are computed, rather than all of it at the end. The
        # system reports a failed write-back once, so the error is kept for the commit.
        try:
            file.sync()
        except OSError as error:
            self._sync_error = error
        except ValueError:
            pass  # closed meanwhile: the writer was left with an exception

    def _fail(self, error: OSError) -> NoReturn:
        reasons = {
            errno.ENOSPC: "the disk is full; make room or choose another destination",
            errno.EDQUOT: "the disk quota is used up; make room or choose another destination",
            errno.EFBIG: f"the file system cannot hold a file of {_gigabytes(self.nbytes)}; choose "
            "another destination",
            errno.EACCES: "access denied; close what uses it, or mend the folder's permissions",
        }
        reason = reasons.get(error.errno or 0, f"{error.strerror or error}; choose another place")
        raise CheckpointError(f"cannot write {self.path}: {reason}") from error


class _Coverage:
    """Which bytes of a tensor have been written: disjoint ranges, as their ascending bounds."""

    def __init__(self) -> None:
        self._bounds: list[int] = []

    def add(self, start: int, stop: int) -> None:
        if start == stop:
            return
        low, high = bisect_left(self._bounds, start), bisect_right(self._bounds, stop)
        # At an even position the bound lies outside every range, so it stays one.
        self._bounds[low:high] = [start] * (low % 2 == 0) + [stop] * (high % 2 == 0)

    @property
    def total(self) -> int:
        return sum(self._bounds[1::2]) - sum(self._bounds[::2])


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's values as row-major bytes; no copy for a contiguous CPU tensor."""
    return byte_view(tensor.detach().cpu().resolve_conj().resolve_neg().contiguous())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e9:.3f} GB"
