"""Files of input scales in ComfyUI's folders: JSON in input and output, and any model file."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..errors import CheckpointError
from .paths import list_sources, resolve_source


def _roots() -> dict[str, Path]:
    return {
        "input": Path(folder_paths.get_input_directory()),
        "output": Path(folder_paths.get_output_directory()),
    }


def list_scale_files() -> list[str]:
    """Files that scales can be imported from: JSON, the newest first, then models."""
    found = [
        (path.stat().st_mtime, f"{label}/{path.relative_to(root).as_posix()}")
        for label, root in _roots().items()
        for path in root.rglob("*.json")
        if path.is_file() and _inside(path, root)
    ]
    return [*(name for _, name in sorted(found, reverse=True)), *list_sources()]


def resolve_scale_file(choice: str) -> Path:
    """The file a choice of :func:`list_scale_files` names. CheckpointError for any other."""
    label, _, name = choice.partition("/")
    if label not in _roots():
        return resolve_source(choice)
    if choice not in list_scale_files():
        raise CheckpointError(
            f"{choice!r} is not among the JSON files in ComfyUI's input and output folders; press "
            "R in the browser to refresh the list"
        )
    return _roots()[label] / name


def _inside(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
