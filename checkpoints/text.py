"""Small text files, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError, DestinationExistsError
from .partial import publish


def write_text(path: str | Path, text: str, overwrite: bool = False) -> Path:
    """Write a UTF-8 file; it appears under its name when complete.

    Raises CheckpointError where it cannot be written, DestinationExistsError where it exists.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise DestinationExistsError(f"{path} exists: choose another name, or allow overwriting")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        publish(partial, path, overwrite)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    return path
