"""Calibrations in ComfyUI's folders: ``calibrations`` in the output and in the model folder."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..converters.calibration import Calibration
from ..errors import CheckpointError
from .paths import SUFFIX

FOLDER = "calibrations"


def _roots() -> dict[str, Path]:
    return {
        "output": Path(folder_paths.get_output_directory()) / FOLDER,
        "models": Path(folder_paths.models_dir) / FOLDER,
    }


def list_calibrations() -> list[str]:
    """Files that can be loaded: ``output/<name>`` or ``models/<name>``, the newest first."""
    found = [
        (path.stat().st_mtime, f"{label}/{path.relative_to(root).as_posix()}")
        for label, root in _roots().items()
        for path in root.rglob(f"*{SUFFIX}")
        if path.is_file()
    ]
    return [name for _, name in sorted(found, reverse=True)]


def resolve_calibration(choice: str) -> Path:
    """The file a choice of :func:`list_calibrations` names. CheckpointError for any other."""
    label, _, name = choice.partition("/")
    if choice not in list_calibrations():
        raise CheckpointError(
            f"{choice!r} is not among the calibrations in output/{FOLDER} and models/{FOLDER}; "
            "press R in the browser to refresh the list"
        )
    return _roots()[label] / name


def load_calibration(choice: str) -> Calibration:
    """Open a choice of :func:`list_calibrations`; its tensors are read when they are needed."""
    return Calibration.load(resolve_calibration(choice))


def version_of(choice: str) -> str:
    """Something that changes when the file of a choice does."""
    try:
        state = resolve_calibration(choice).stat()
    except (CheckpointError, OSError):
        return ""
    return f"{state.st_mtime_ns} {state.st_size}"
