"""What the browser asks of model files: what one holds, and where a dropped one is.

Headers and layers' JSON are read, never a weight. Only files that ComfyUI lists are looked at.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths

from ..checkpoints import Checkpoint, read_layers
from ..converters.inspecting.loaders import why_not_stock
from ..converters.model import ModelView
from ..converters.presets import detect
from ..errors import CheckpointError, RoundsmithError
from .paths import SOURCES, list_sources, resolve_source

MOST_NAMES, LONGEST_NAME = 20_000, 500
"""Tensor names a request may hold, and the characters of one."""

_FOLDERS = {
    "diffusion": "diffusion_models",
    "text_encoder": "text_encoders",
    "checkpoint": "checkpoints",
}
_LORA = re.compile(r"(?:^|[._])lora[._]?(?:[ab]|up|down|te\d?|unet)[._]", re.IGNORECASE)
_CLIP = re.compile(
    r"^(?:transformer\.)?text_model\."
)  # which no preset describes: it stays as it is
_VAE = re.compile(r"^(?:(?:first_stage_model|vae)\.)?(?:encoder|decoder|quant_conv)\b")


def facts(source: str) -> dict[str, Any]:
    """What a file holds and who reads it, for a badge.

    Args:
        source: a choice of :func:`~.paths.list_sources`.

    Returns:
        ``formats`` (weights by how they are stored), ``bytes``, ``model`` (what it was recognised
        as), ``stock``, ``why_not_stock``, ``roundsmith`` and ``why_not_roundsmith``; only a
        ``problem`` where the file cannot be read.
    """
    path = resolve_source(source)
    try:
        state = path.stat()
        return _facts(path, state.st_mtime_ns, state.st_size)
    except (RoundsmithError, OSError) as error:
        return {"problem": str(error).replace(str(path), source)}


@functools.lru_cache(maxsize=256)
def _facts(path: Path, _modified: int, size: int) -> dict[str, Any]:
    problems: dict[str, str] = {}
    with Checkpoint.open(path) as source:
        model = ModelView(source, problems)
        formats = Counter(
            stored.format.id
            if (stored := model.stored_layer(name))
            else source.tensors[name].dtype_name.lower()
            for name in model.names
            if name.endswith(".weight") and len(model.described(name).shape) >= 2
        )
        why = why_not_stock(source, read_layers(source), model.stored)
        return {
            "formats": dict(formats.most_common()),
            "bytes": size,
            "model": detect(model.names).evidence,
            "stock": not why and not problems,
            "why_not_stock": list(why),
            "roundsmith": not problems,
            "why_not_roundsmith": [f"{layer}: {reason}" for layer, reason in problems.items()],
        }


def match(name: str, size: int, tensors: Sequence[str] = ()) -> dict[str, Any]:
    """Where a file that a person dropped is among ComfyUI's, by its name and its size.

    Args:
        name: the file's name, without folders.
        size: its bytes.
        tensors: names of its tensors: they tell which folder it belongs into.

    Returns:
        ``candidates`` (choices of :func:`~.paths.list_sources`), ``other_size`` (those of its
        name with another size), ``kind`` and ``folder``: what it seems to be, and the folder for
        that, seen from ComfyUI's; both empty where it is not recognised.
    """
    if not name or re.search(r"[/\\\x00-\x1f]", name) or size < 0:
        raise CheckpointError("name: a file's name without folders is wanted, and its size")
    if len(tensors) > MOST_NAMES or any(len(tensor) > LONGEST_NAME for tensor in tensors):
        raise CheckpointError(
            f"tensors: at most {MOST_NAMES:,} names of {LONGEST_NAME} characters are wanted"
        )
    named = [s for s in list_sources() if re.split(r"[/\\]", s)[-1].lower() == name.lower()]
    found = [source for source in named if _size(source) == size]
    kind, folder = kind_of(tensors)
    return {
        "candidates": found,
        "other_size": [source for source in named if source not in found],
        "kind": kind,
        "folder": folder and shown_folder(folder),
        "folders": [shown_folder(folder) for folder in SOURCES],
    }


def kind_of(tensors: Sequence[str]) -> tuple[str, str]:
    """What a file with these tensors is, and ComfyUI's folder for it; both "" if unknown."""
    if sum(_LORA.search(name) is not None for name in tensors) * 2 > len(tensors):
        return "lora", "loras"
    found = detect(tensors)
    if found.kind in _FOLDERS:
        return found.kind, _FOLDERS[found.kind]
    if any(map(_CLIP.match, tensors)):
        return "text_encoder", _FOLDERS["text_encoder"]
    vae = any(part.role == "vae" for part in found.parts)
    if vae or (tensors and all(_VAE.match(name) for name in tensors)):
        return "vae", "vae"
    return "", ""


def shown_folder(kind: str) -> str:
    """The folder of a kind of model, seen from ComfyUI's own; never a path of this machine."""
    base = Path(folder_paths.base_path)
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        if root.name == kind and root.is_relative_to(base):
            return root.relative_to(base).as_posix()
    return f"models/{kind}"


def _size(source: str) -> int | None:
    try:
        return resolve_source(source).stat().st_size
    except (CheckpointError, OSError):  # gone since it was listed
        return None
