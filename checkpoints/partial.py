"""The temporary file a writer fills: its name, its life, and clearing up after killed writers.

Name: ``.<final name>.<pid>.roundsmith-partial``, in the destination's folder so that the last step
is a rename; with ``<pid>-<n>`` where one process writes the same destination twice at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import logging
import os
import re
import sys
from pathlib import Path

from ..errors import DestinationExistsError

logger = logging.getLogger(__name__)

_SUFFIX = ".roundsmith-partial"

# The partials this process is writing. One with our own pid that is not among them was left by a
# dead process of the same pid: the rule in containers, where the main process is always number 1.
_live: set[Path] = set()


def create_partial(final: Path) -> Path:
    """Create a new, empty temporary file for ``final``. Raises OSError."""
    for count in itertools.count():
        process = f"{os.getpid()}-{count}" if count else f"{os.getpid()}"
        partial = final.absolute().with_name(f".{final.name}.{process}{_SUFFIX}")
        try:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            continue
        _live.add(partial)
        return partial
    raise AssertionError("unreachable")


def discard_partial(partial: Path) -> None:
    """Remove a temporary file, where it still is; never raises OSError."""
    try:
        partial.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s could not be removed, please delete it: %s", partial, error)
    finally:
        _live.discard(partial)


def remove_stale_partials(final: Path) -> list[Path]:
    """Remove the temporary files of ``final`` whose process is gone; returns them.

    A pid means nothing on another machine: two machines must not write the same name in one shared
    folder at the same time.
    """
    pattern = re.compile(rf"\.{re.escape(final.name)}\.(\d+)(?:-\d+)?{re.escape(_SUFFIX)}")
    removed = []
    try:
        candidates = sorted(final.absolute().parent.iterdir())
    except OSError:
        return []  # a folder that can be written to but not listed
    for path in candidates:
        match = pattern.fullmatch(path.name)
        if match is None or path in _live:
            continue
        pid = int(match[1])
        if pid != os.getpid() and _is_alive(pid):
            continue
        with contextlib.suppress(
            OSError
        ):  # another writer was faster, or (Windows) it is open after all
            path.unlink()
            removed.append(path)
            logger.info("removed %s, left by a killed process", path)
    return removed


def publish(partial: Path, final: Path, overwrite: bool) -> None:
    """Give a finished temporary file its final name, in one step.

    Raises DestinationExistsError where another file took the name meanwhile and ``overwrite`` is
    not given, OSError where the system refuses.
    """
    if overwrite:
        os.replace(partial, final)
    else:
        try:
            _rename_to_free_name(partial, final)
        except FileExistsError as error:
            raise DestinationExistsError(
                f"{final} was created by another program meanwhile: choose another name, or allow "
                "overwriting"
            ) from error
    _sync_folder(final.absolute().parent)


def _rename_to_free_name(partial: Path, final: Path) -> None:
    if os.name == "nt":
        os.rename(partial, final)  # refuses an existing name there
        return
    try:
        os.link(partial, final)
    except FileExistsError:
        raise
    except OSError as error:  # no hard links on this file system
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from error
        os.replace(partial, final)
    else:
        partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where folders can be synced (Windows cannot)."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        synchronize, query_limited, access_denied, timeout = 0x100000, 0x1000, 5, 0x102
        kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel32.OpenProcess.restype = ctypes.c_void_p
        handle = kernel32.OpenProcess(synchronize | query_limited, False, pid & 0xFFFFFFFF)
        if not handle:
            return ctypes.get_last_error() == access_denied
        try:
            return bool(kernel32.WaitForSingleObject(ctypes.c_void_p(handle), 0) == timeout)
        finally:
            kernel32.CloseHandle(ctypes.c_void_p(handle))
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
