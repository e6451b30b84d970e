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
from .naming import label, new_name
from .paths import home_folder, resolve_destination, resolve_source
from .progress import NodeProgress, cancelled
from .timing import measured, rounding_kind


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
        name: the new file's name in it, or a pattern (:mod:`.naming`); empty for the source's with
            the format.
        recipe: the settings.
        overwrite: replace an existing file.
        calibration: statistics of the layers' inputs.
    """
    path = resolve_source(source)
    home = source.partition("/")[0]
    name = new_name(name, source, label(recipe), recipe.rounding)
    base = home_folder(path, home) if folder == "same as source" else None
    target = resolve_destination(home if base else folder, name, base)
    with Checkpoint.open(path) as checkpoint:
        make_room(recipe, (tensor.shape for tensor in checkpoint.tensors.values()))
    kind = rounding_kind(recipe, "calibrated" if calibration else "nearest")
    try:
        with measured(kind, path.stat().st_size):
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
