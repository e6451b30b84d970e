"""Names from a workflow made into paths, inside ComfyUI's folders only."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

from ..errors import CheckpointError

SUFFIX = ".safetensors"
FOLDERS = {
    "output": "ComfyUI's output folder",
    "diffusion_models": "the diffusion model folder",
    "text_encoders": "the text encoder folder",
    "checkpoints": "the checkpoint folder",
}
SOURCES = ("diffusion_models", "text_encoders", "checkpoints")


def list_sources() -> list[str]:
    """Files Quantize File and Inspect can open: ``<folder>/<name>``, safetensors only."""
    return [
        f"{folder}/{name}"
        for folder in SOURCES
        for name in folder_paths.get_filename_list(folder)
        if name.lower().endswith((SUFFIX, ".sft"))
    ]


def resolve_source(choice: str) -> Path:
    """The file a choice of :func:`list_sources` names. Raises CheckpointError for any other."""
    folder, _, name = choice.partition("/")
    if folder not in SOURCES or name not in folder_paths.get_filename_list(folder):
        raise CheckpointError(
            f"{choice!r} is not among ComfyUI's models; press R in the browser to refresh the list"
        )
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def home_folder(source: Path, folder: str) -> Path:
    """The configured folder of kind ``folder`` that ``source`` lies in."""
    for root in folder_paths.get_folder_paths(folder):
        if _inside(os.path.abspath(source), os.path.abspath(root)):
            return Path(root)
    return base_folder(folder)


def base_folder(folder: str) -> Path:
    """The folder a new file of this kind goes into: of several, the one named like the kind."""
    if folder == "output":
        return Path(folder_paths.get_output_directory())
    if folder not in FOLDERS:
        raise CheckpointError(f"unknown folder {folder!r}; known: {', '.join(FOLDERS)}")
    roots = folder_paths.get_folder_paths(folder)
    return Path(next((root for root in roots if Path(root).name == folder), roots[0]))


def resolve_destination(folder: str, name: str, base: Path | None = None) -> Path:
    """The path for a new file ``name`` in ``folder``, subfolders allowed and made.

    ``base`` is the configured folder where ``folder`` has several. Raises CheckpointError for a
    name that is absolute, leaves the folder by ``..`` or a link, or is no file name.
    """
    base = base or base_folder(folder)
    parts = [part for part in re.split(r"[/\\]", name.strip()) if part not in ("", ".")]
    bad = (
        not parts
        or name.strip().startswith(("/", "\\", "~"))
        or any(part == ".." or part != part.strip() or part.endswith(".") for part in parts)
        or re.search(r"[\x00-\x1f:*?\"<>|]", name) is not None
    )
    if bad:
        raise CheckpointError(
            f"destination {name!r} is refused: give a name inside {FOLDERS[folder]}, without '..', "
            "drive letters or a leading slash"
        )
    if not parts[-1].lower().endswith(SUFFIX):
        parts[-1] += SUFFIX
    path = base.joinpath(*parts)
    root = os.path.realpath(base)
    if path.is_symlink() or not _inside(os.path.realpath(path), root):
        instead = "" if folder == "output" else "; choose folder 'output' instead"
        raise CheckpointError(
            f"destination {name!r} is refused: a link in it leads outside {FOLDERS[folder]}"
            + instead
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _inside(path: str, root: str) -> bool:
    try:
        return os.path.commonpath((path, root)) == root
    except ValueError:  # on different drives
        return False


def next_output_path(prefix: str, suffix: str = SUFFIX) -> Path:
    """The next free numbered file for ``prefix`` in the output folder, as ComfyUI numbers them.

    ComfyUI refuses a prefix that leads outside; so is one through a link.
    """
    output = folder_paths.get_output_directory()
    if not prefix.strip() or re.search(r"[\x00-\x1f]", prefix):
        raise CheckpointError("the file name prefix is empty or holds control characters")
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix.strip(), output)
    except Exception as error:
        raise CheckpointError(
            f"file name prefix {prefix!r} is refused: it leads outside ComfyUI's output folder"
        ) from error
    if not _inside(os.path.realpath(folder), os.path.realpath(output)):
        raise CheckpointError(
            f"file name prefix {prefix!r} is refused: a link in it leads outside the output folder"
        )
    return Path(folder) / f"{name}_{counter:05}_{suffix}"
