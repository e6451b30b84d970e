"""Files to files, for the nodes."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as mm

from .. import converters
from ..checkpoints import Checkpoint
from ..converters import Recipe, Report
from ..converters.calibration import Calibration
from ..errors import Cancelled
from .memory import make_room
from .paths import SUFFIX, home_folder, resolve_destination, resolve_source
from .progress import NodeProgress, cancelled


def quantize_file(
    source: str,
    folder: str,
    name: str,
    recipe: Recipe,
    overwrite: bool = False,
    calibration: Calibration | None = None,
) -> tuple[Path, Report]:
    """Quantize one of ComfyUI's model files into a new file in one of its folders.

    Args:
        source: a choice of :func:`~.paths.list_sources`.
        folder: a folder of :data:`~.paths.FOLDERS`, or ``"same as source"``.
        name: the new file's name in it; empty for the source's with the format.
        recipe: the settings.
        overwrite: replace an existing file.
        calibration: statistics of the layers' inputs.
    """
    path = resolve_source(source)
    home, _, relative = source.partition("/")
    if not name.strip():
        stem = Path(relative.replace("\\", "/")).with_suffix("")
        name = f"{stem.as_posix()}-{_label(recipe)}{SUFFIX}"
    base = home_folder(path, home) if folder == "same as source" else None
    target = resolve_destination(home if base else folder, name, base)
    with Checkpoint.open(path) as checkpoint:
        make_room(recipe, (tensor.shape for tensor in checkpoint.tensors.values()))
    try:
        report = converters.quantize_file(
            *(path, target, recipe),
            calibration=calibration,
            progress=NodeProgress("quantizing"),
            cancel=cancelled,
            overwrite=overwrite,
        )
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise
    return target, report


def _label(recipe: Recipe) -> str:
    rotated = "convrot" if recipe.convrot else None
    parts = (recipe.format, recipe.variant, recipe.scaling, recipe.group_size, rotated)
    return "-".join(str(part) for part in parts if part)
