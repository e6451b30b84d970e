"""What the nodes that change files share: where the result goes, progress, cancelling."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as mm

from ..converters.patching import Destination
from ..errors import Cancelled, CheckpointError
from .naming import new_name
from .paths import home_folder, resolve_destination, resolve_source
from .progress import NodeProgress, cancelled

WRITE = ("new file", "in place", "nothing")
"""Where a tool's result goes; the last only shows what would change."""


def run_file_tool(
    tool: Callable[..., Any],
    source: str,
    *args: Any,
    label: str,
    write: str = "new file",
    folder: str = "same as source",
    filename: str = "",
    overwrite: bool = False,
) -> Any:
    """Run ``tool(path, *args, destination, progress=…, cancel=…)`` on one of ComfyUI's files.

    Args:
        tool: takes the source and the destination first.
        source: a choice of :func:`~.paths.list_sources`.
        args: what the tool takes after these two.
        label: added to the source's name where ``filename`` is empty; a pattern's ``{format}``.
        write: one of :data:`WRITE`.
        folder: a folder of :data:`~.paths.FOLDERS`, or ``"same as source"``.
        filename: the new file's name in it, or a pattern (:mod:`.naming`).
        overwrite: replace an existing file.

    Returns:
        The tool's report.
    """
    path = resolve_source(source)
    if write == "nothing":
        destination = Destination(dry_run=True)
    elif write == "in place":
        destination = _in_place(path, source)
    else:
        target = _target(path, source, folder, filename, label)
        destination = Destination(target, overwrite)
    try:
        return tool(path, destination, *args, progress=NodeProgress("writing"), cancel=cancelled)
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise


def version_of(source: str) -> str:
    """Something that changes when the file of a choice of :func:`~.paths.list_sources` does."""
    try:
        state = resolve_source(source).stat()
    except (CheckpointError, OSError):
        return ""
    return f"{state.st_mtime_ns} {state.st_size}"


def _target(path: Path, source: str, folder: str, name: str, label: str) -> Path:
    home = source.partition("/")[0]
    name = new_name(name, source, label, "unchanged")
    base = home_folder(path, home) if folder == "same as source" else None
    return resolve_destination(home if base else folder, name, base)


def _in_place(path: Path, source: str) -> Destination:
    home = home_folder(path, source.partition("/")[0])
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(home)):
        raise CheckpointError(
            f"{source!r} is a link that leads outside {home}; nothing is written there: write a "
            "new file instead"
        )
    return Destination(in_place=True)
