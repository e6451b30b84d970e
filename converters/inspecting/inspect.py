"""Inspecting a file: its header, its scales, and a sample of its codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...checkpoints import Checkpoint, read_layers
from ...errors import Cancelled, FormatError
from ..corrections.calibrate_file import METADATA_KEY as INPUT_SCALES
from ..model import ModelView
from ..presets import detect
from ..progress import Progress
from ..recipe import METADATA_KEY
from ..stored import StoredLayer
from .codes import CodeStats, code_stats
from .inspection import Inspection, LayerInfo, Suspicion
from .loaders import why_not_stock
from .scales import ScaleStats, scale_stats
from .suspicions import of_layer, orphans


def inspect_file(
    path: str | Path,
    *,
    deep: bool = False,
    original: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Inspection:
    """Say what a checkpoint holds, what is suspicious, which loaders read it and how it was made.

    Scales are read whole, of codes a sample.

    Args:
        path: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        deep: read all codes.
        original: the model before it was quantized: weights are scored against it, which reads
            both files. Without it the score is estimated from the codes.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.

    Raises:
        CheckpointError: a file that cannot be read.
        RoundsmithError: an original that is another model.
        Cancelled: ``cancel`` said so.
    """
    problems: dict[str, str] = {}
    with Checkpoint.open(path) as source:
        model = ModelView(source, problems)
        described = read_layers(source)
        suspicious = [Suspicion("unreadable", x, why) for x, why in problems.items()]
        scores = {} if original is None else _scores(original, path, progress, cancel)
        layers, sizes = [], Counter[str]()
        weights = [n for n in model.names if n.endswith(".weight") and len(model.shape(n)) >= 2]
        total, done = sum(map(model.nbytes, weights)), 0
        for name in model.names:
            stored = model.stored_layer(name)
            sizes[_kind(model, name, stored)] += model.nbytes(name)
        for index, name in enumerate(weights, 1):
            if cancel is not None and cancel():
                raise Cancelled("cancelled")
            if progress is not None and original is None:
                progress(Progress(name, index, len(weights), done, total))
            done += model.nbytes(name)
            layer, stored = name.removesuffix(".weight"), model.stored_layer(name)
            numbers = _Numbers() if stored is None else _numbers(source, layer, stored, deep)
            suspicious += numbers.problems
            estimate = numbers.codes.snr if numbers.codes is not None else None
            info = LayerInfo(
                layer,
                model.shape(name),
                _kind(model, name, stored),
                model.nbytes(name),
                None if stored is None else stored.conf,
                numbers.scales,
                numbers.input_scale,
                numbers.codes,
                (scores.get(layer) if scores else estimate) if stored is not None else None,
            )
            layers.append(info)
            if stored is not None:
                suspicious += of_layer(info)
        suspicious += orphans(source, model.stored, problems)
        stock = why_not_stock(source, described, model.stored)
        unreadable = tuple(f"{layer}: {why}" for layer, why in problems.items())
        return Inspection(
            str(path),
            detect(model.names).evidence or "unknown",
            tuple(layers),
            dict(sizes.most_common()),
            not stock and not unreadable,
            sum(sizes.values()),
            source.metadata.get(METADATA_KEY),
            tuple(model.notes),
            stock,
            unreadable,
            tuple(suspicious),
            _made(source),
            "" if original is None else str(original),
            deep,
        )


class _Numbers(NamedTuple):
    """What a layer's tensors say."""

    scales: ScaleStats | None = None
    input_scale: float | None = None
    codes: CodeStats | None = None
    problems: tuple[Suspicion, ...] = ()


def _numbers(source: Checkpoint, layer: str, stored: StoredLayer, deep: bool) -> _Numbers:
    scale = None
    name = stored.parts.get("input_scale")
    if name is not None and source.tensors[name].dtype is not None:
        value = source.read(name)
        scale = float(value.float()) if value.numel() == 1 else None
    try:
        return _Numbers(scale_stats(source, stored), scale, code_stats(source, stored, deep))
    except (FormatError, KeyError) as error:
        missing = f"its tensor {error} is missing" if isinstance(error, KeyError) else str(error)
        return _Numbers(None, scale, None, (Suspicion("unreadable", layer, missing),))


def _kind(model: ModelView, name: str, stored: StoredLayer | None) -> str:
    return stored.format.id if stored else str(model.source.tensors[name].entry[0])


def _scores(
    original: str | Path,
    path: str | Path,
    progress: Callable[[Progress], None] | None,
    cancel: Callable[[], bool] | None,
) -> dict[str, float | None]:
    from ..comparing import compare_files

    compared = compare_files(original, path, progress=progress, cancel=cancel)
    return {layer.name: layer.weight for layer in compared.layers}


def _made(source: Checkpoint) -> dict[str, str]:
    known = {METADATA_KEY: "made with", INPUT_SCALES: "input scales"}
    return {what: source.metadata[key] for key, what in known.items() if key in source.metadata}
