"""Positional, thread-safe reads and writes of one file, straight from and into the caller's memory.

Where the system has ``preadv`` and ``pwrite`` all threads share one descriptor. Elsewhere (Windows)
a position belongs to the handle, so each thread opens its own.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHARED_DESCRIPTOR = hasattr(os, "preadv") and hasattr(os, "pwrite")
_CANNOT_COPY = (
    *(errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM),
)
_PIECE = 64 * 2**20  # bytes a system call: below every platform's limit, and Ctrl-C is heard


class PositionalFile:
    """An existing file, opened for reading (``"rb"``) or for reading and writing (``"r+b"``)."""

    def __init__(self, path: Path, mode: str) -> None:
        self.path = path
        self._mode = mode
        self._local = threading.local()
        self._handles: list[FileIO] = []
        self._busy = 0
        self._closed = False
        self._changed = threading.Condition()
        self._shared: FileIO | None = self._open() if SHARED_DESCRIPTOR else None

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` (bytes) from ``offset``; returns how many, fewer only at the file's end.

        Raises OSError.
        """
        done = 0
        with self._handle() as handle:
            while done < len(buffer):
                piece = buffer[done : done + _PIECE]
                if self._shared is not None:
                    count = os.preadv(handle.fileno(), [piece], offset + done)
                else:
                    handle.seek(offset + done)
                    count = handle.readinto(piece) or 0
                if count == 0:
                    break
                done += count
        return done

    def write_from(self, buffer: memoryview, offset: int) -> None:
        """Write all of ``buffer`` (bytes) at ``offset``. Raises OSError."""
        done = 0
        with self._handle() as handle:
            while done < len(buffer):
                piece = buffer[done : done + _PIECE]
                if self._shared is not None:
                    done += os.pwrite(handle.fileno(), piece, offset + done)
                else:
                    handle.seek(offset + done)
                    done += handle.write(piece) or 0

    def copy_from(self, other: PositionalFile, source: int, target: int, count: int) -> int:
        """Copy bytes of another file from its offset ``source`` to ``target`` here.

        The system copies where it can, without passing the bytes through this process. Returns how
        many were copied, fewer than ``count`` where the system cannot, or at the other file's end.
        Raises OSError.
        """
        copy = getattr(os, "copy_file_range", None)
        done = 0
        with self._handle() as handle, other._handle() as theirs:
            while copy is not None and done < count:
                piece = min(count - done, _PIECE)
                ends = (theirs.fileno(), handle.fileno())
                try:
                    copied = copy(*ends, piece, source + done, target + done)
                except OSError as error:
                    if error.errno in _CANNOT_COPY:
                        break
                    raise
                if copied == 0:
                    break
                done += copied
        return done

    def sync(self) -> None:
        """Wait until what was written so far is on the disk. Raises OSError."""
        with self._handle() as handle:
            os.fsync(handle.fileno())

    def close(self) -> None:
        """Close, once reads and writes under way in other threads are done. Harmless twice."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._busy == 0)
            handles, self._handles = self._handles, []
        for handle in handles:
            handle.close()

    @contextmanager
    def _handle(self) -> Iterator[FileIO]:
        # The users are counted so that close() cannot free a descriptor number that another thread
        # is about to write through: the number might name another file by then.
        with self._changed:
            if self._closed:
                raise ValueError(f"{self.path} is closed")
            self._busy += 1
        try:
            yield self._shared or self._handle_of_thread()
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _handle_of_thread(self) -> FileIO:
        if not hasattr(self._local, "handle"):
            self._local.handle = self._open()
        handle: FileIO = self._local.handle
        return handle

    def _open(self) -> FileIO:
        handle = FileIO(self.path, self._mode)
        with self._changed:
            self._handles.append(handle)
        return handle


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor of any dtype as bytes, without a copy."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
