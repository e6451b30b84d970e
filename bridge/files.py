"""Files to files, and files to tables, for the nodes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management as mm

from .. import converters
from ..checkpoints import Checkpoint
from ..converters import ModelView, Recipe, Report
from ..converters.presets import resolve
from ..errors import Cancelled
from .paths import SUFFIX, home_folder, resolve_destination, resolve_source
from .progress import NodeProgress, cancelled


def quantize_file(
    source: str, folder: str, name: str, recipe: Recipe, overwrite: bool = False
) -> tuple[Path, Report]:
    """Quantize one of ComfyUI's model files into a new file in one of its folders.

    Args:
        source: a choice of :func:`~.paths.list_sources`.
        folder: a folder of :data:`~.paths.FOLDERS`, or ``"same as source"``.
        name: the new file's name in it; empty for the source's with the format.
        recipe: the settings.
        overwrite: replace an existing file.
    """
    path = resolve_source(source)
    home, _, relative = source.partition("/")
    if not name.strip():
        stem = Path(relative.replace("\\", "/")).with_suffix("")
        name = f"{stem.as_posix()}-{_label(recipe)}{SUFFIX}"
    base = home_folder(path, home) if folder == "same as source" else None
    target = resolve_destination(home if base else folder, name, base)
    try:
        report = converters.quantize_file(
            path, target, recipe, progress=NodeProgress(), cancel=cancelled, overwrite=overwrite
        )
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise
    return target, report


def _label(recipe: Recipe) -> str:
    rotated = "convrot" if recipe.convrot else None
    parts = (recipe.format, recipe.scaling, recipe.group_size, rotated)
    return "-".join(str(part) for part in parts if part)


@dataclass(frozen=True)
class Inspection:
    """What a file holds: one line, a table, JSON."""

    summary: str
    table: str
    json: str


def inspect_file(source: str) -> Inspection:
    """Describe one of ComfyUI's model files from its header and its layers' JSON."""
    path = resolve_source(source)
    with Checkpoint.open(path) as checkpoint:
        model = ModelView(checkpoint)
        policy = resolve("auto", model.names)
        rows, counts = [], Counter()
        for name in model.names:
            layer = model.stored_layer(name)
            kind = layer.format.id if layer else str(model.described(name).dtype).split(".")[-1]
            counts[kind] += 1
            rows.append(
                {
                    "name": name.removesuffix(".weight") if layer else name,
                    "format": kind,
                    "shape": list(model.shape(name)),
                    "bytes": model.nbytes(name),
                    **({"conf": layer.conf} if layer else {}),
                }
            )
        family = policy.detection.evidence or "unknown model"
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        summary = f"{path.name}: {checkpoint.nbytes / 1e6:,.1f} MB, {family}; {kinds}"
        data = {"file": path.name, "model": family, "notes": model.notes, "layers": rows}
        return Inspection(summary, _table(rows, [summary, *model.notes]), json.dumps(data))


def _table(rows: list[dict], head: list[str]) -> str:
    width = max((len(row["name"]) for row in rows), default=0)
    lines = [
        f"{row['name'].ljust(width)}  {row['format']:<24} {row['shape']!s:<16} {row['bytes']:,}"
        for row in rows
    ]
    return "\n".join([*head, "", *lines])
