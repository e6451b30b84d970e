"""What input scales are read or guessed from in ComfyUI's folders: JSON, model files, LoRAs."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..errors import CheckpointError
from .paths import SUFFIX, list_sources, resolve_source

_LORAS = "loras"


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


def list_loras() -> list[str]:
    """LoRAs that inputs can be estimated from, as ComfyUI lists them; safetensors only."""
    names = folder_paths.get_filename_list(_LORAS)
    return [name for name in names if name.lower().endswith((SUFFIX, ".sft"))]


def resolve_lora(choice: str) -> Path:
    """The file a choice of :func:`list_loras` names. CheckpointError for any other."""
    if choice not in list_loras():
        raise CheckpointError(
            f"{choice!r} is not among the safetensors files in ComfyUI's LoRA folders; press R in "
            "the browser to refresh the list"
        )
    return Path(folder_paths.get_full_path_or_raise(_LORAS, choice))


def _inside(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
