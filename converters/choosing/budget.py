"""A format for each layer, so that a file of a given size comes as near to the original as can be.

Each layer's error in each format comes from :mod:`.sensitivity`, the choice from :mod:`.hull`. The
result is a recipe: one rule a format, which a person may edit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints import Checkpoint, encode_conf
from ...errors import Cancelled, RecipeError
from ...kernels.machine import out_of_memory
from ...layouts import Candidate, Spec, formats, get_format
from ..calibration import Calibration, Record
from ..engine import CancelCallback, ProgressCallback, rounding_device
from ..model import ModelView
from ..options import Options
from ..plan import TensorPlan, entry_nbytes, make_plan
from ..preset_files import own_presets
from ..presets import resolve
from ..progress import Progress
from ..recipe import Recipe
from ..source import Source
from ..statistics import Statistics
from .hull import Option, walk, within_bytes, within_error
from .result import Budget, Chosen, decibel
from .rules import TIED, rules_of
from .sensitivity import Way, layer_options
from .target import Target


def fit_budget_file(
    src: str | Path,
    target: Target,
    recipe: Recipe | None = None,
    calibration: Calibration | str | Path | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> Budget:
    """:func:`fit_budget` for a checkpoint on disk."""
    if isinstance(calibration, (str, Path)):
        calibration = Calibration.load(calibration)
    with Checkpoint.open(src) as source:
        return fit_budget(source, target, recipe, calibration, progress, cancel)


def fit_budget(
    source: Source,
    target: Target,
    recipe: Recipe | None = None,
    calibration: Calibration | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
    decodes: bool | None = None,
) -> Budget:
    """Choose a format for each layer that ``recipe`` would quantize.

    Args:
        source: the model.
        target: size or quality.
        recipe: everything else; layers that its preset or exclude keep, and those that rules, a
            layer config or a fallback speak of, are not chosen for.
        calibration: statistics of the layers' inputs; without them weights decide. Where it has
            the layers' influences, the model's output decides, else all layers count alike.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.
        decodes: the runtime decodes every weight before its product; None: as ComfyUI does, for
            text encoders.

    Raises:
        RecipeError: no choice reaches the target; the message says how far one can go.
    """
    recipe = recipe or Recipe()
    model = ModelView(source)
    statistics = Statistics(model, recipe, calibration)
    plan = make_plan(model, recipe, None, statistics.known)
    # Layers that a rule, a layer config or a fallback speaks of are a person's own choice.
    layers = [t for t in plan.tensors if isinstance(t.options, Recipe)]
    if not layers:
        raise RecipeError(
            "nothing to choose for: rules decide about every layer, or none suits the recipe; see "
            "its plan"
        )
    device = rounding_device(recipe.device)
    calibrated = recipe.rounding in ("auto", "calibrated")
    if decodes is None:
        own = own_presets(recipe.presets or None)
        decodes = resolve(recipe.preset, model.names, own).detection.kind == "text_encoder"
    influences, notes = _influences([t.layer for t in layers], calibration)
    bad: dict[str, str] = {}
    ways: list[list[Way]] = []
    options: list[list[Option]] = []
    errors: list[list[float]] = []
    total, done = sum(t.bytes_before for t in layers), 0
    for index, t in enumerate(layers, 1):
        if cancel is not None and cancel():
            raise Cancelled("cancelled; nothing was chosen")
        if progress is not None:
            progress(Progress(t.layer, index, len(layers), done, total))
        done += t.bytes_before
        w = model.read_rows(t.name, 0, t.shape[0]).to(torch.float32)
        model.release()
        if bool(torch.isfinite(w).all()):
            mine = _ways(model, t, recipe, target)
        else:
            bad[t.layer] = "weights are NaN or Inf; kept as it is"
            mine = [Way(None, t.bytes_before)]
        ways.append(mine)
        record = statistics.record(t.layer)
        tried = _tried(w, device, mine, record, calibrated, bool(decodes))
        errors.append([option.error for option in tried])
        options.append([Option(o.nbytes, o.error * influences[t.layer]) for o in tried])
    rest = plan.size - sum(t.bytes_after for t in layers)
    alike = list(_alike(ways).values())
    while True:
        chosen = _choose(target, layers, options, alike, rest)
        found = tuple(
            Chosen(t.layer, mine[i].spec, some[i].nbytes, lost[i], some[i].error)
            for t, mine, some, lost, i in zip(layers, ways, options, errors, chosen, strict=True)
        )
        made = recipe.model_copy(update={"rules": (*rules_of(found), *recipe.rules)})
        size = make_plan(model, made, bad, statistics.known).size
        if target.size is None or size <= target.size:
            break
        rest += size - target.size  # JSON and rules took more than was thought
    rest = size - sum(c.nbytes for c in found)
    measured = all(statistics.has(t.layer) for t in layers)
    notes += [*statistics.notes, *(f"{layer}: {reason}" for layer, reason in bad.items())]
    if not measured:
        notes.append(
            "chosen by the weights' error, which says less than that of the outputs: connect or "
            "name a calibration" if calibration is None else
            "layers without usable statistics were judged by their weights"
        )  # fmt: skip
    by = "outputs, as executed" if measured else "weights"
    if calibration is not None and calibration.influences:
        by = f"the model's output, by influence and {'layer outputs' if measured else 'weights'}"
    return Budget(
        made,
        found,
        _curve(options, rest),
        _uniform(ways, options, rest),
        size,
        by,
        tuple(notes),
    )


def _influences(
    layers: Sequence[str], calibration: Calibration | None
) -> tuple[dict[str, float], list[str]]:
    """What the error of each layer counts, and what a person should know about it."""
    alike = dict.fromkeys(layers, 1 / len(layers))
    if calibration is None:
        return alike, []
    found = {layer: calibration.influence(layer) for layer in layers}
    known = {layer: value for layer, value in found.items() if value is not None}
    if not any(known.values()):
        return alike, [
            "the errors of all layers counted alike, though some matter more in the end: the "
            "calibration does not know which; let Calibrate (Sampler) measure influences, or "
            "measure_influences"
        ]
    if len(known) == len(layers):
        return known, []
    logs = [math.log(value) for value in known.values() if value > 0]
    middle = math.exp(sum(logs) / len(logs))
    first = next(layer for layer in layers if layer not in known)
    return {layer: known.get(layer, middle) for layer in layers}, [
        f"{len(layers) - len(known)} layers whose influence was not measured ({first}) counted as "
        "the others do in the middle"
    ]


def _tried(
    w: Tensor,
    device: torch.device,
    ways: Sequence[Way],
    record: Record | None,
    calibrated: bool,
    decodes: bool,
) -> list[Option]:
    """A layer's options, measured on ``device``, or on the CPU where it does not fit there."""
    try:
        return layer_options(w.to(device), ways, record, calibrated, decodes)
    except RuntimeError as error:
        if device.type == "cpu" or not out_of_memory(error):
            raise
        torch.cuda.empty_cache()
    return layer_options(w, ways, record, calibrated, decodes)


def _ways(model: ModelView, t: TensorPlan, recipe: Recipe, target: Target) -> list[Way]:
    """The different ways to store a layer."""
    assert t.options is not None
    found: dict[Spec | None, Way] = {}
    if target.keep:
        found[None] = Way(None, t.bytes_before)
    names = target.formats or [f.id for f in formats().values() if f.candidates]
    for name in names:
        fmt = get_format(name)
        for candidate in fmt.candidates or (Candidate(),):
            asked = Options(format=fmt.id, **candidate.options)
            spec = fmt.fit(
                fmt.bind(
                    **{option: getattr(asked, option) for option in TIED},
                    features=t.shape[1],
                    full_precision_matrix_mult=bool(recipe.full_precision_matrix_mult),
                ),
                t.shape,
            ).spec
            if spec is not None and spec not in found:
                shape = (t.shape[0], t.shape[1])
                stored = sum(entry_nbytes(e) for e in fmt.storage(spec, shape).values())
                found[spec] = Way(spec, stored + 2 * len(encode_conf(fmt.conf(spec, shape))))
    if not found:
        raise RecipeError(
            f"layer {t.layer!r} {list(t.shape)} fits none of the formats to choose from: name "
            "others, or let layers stay as they are"
        )
    return list(found.values())


def _choose(
    target: Target,
    layers: Sequence[TensorPlan],
    options: list[list[Option]],
    alike: list[list[int]],
    rest: int,
) -> list[int]:
    start, steps = walk(options)
    smallest = sum(some[i].nbytes for some, i in zip(options, start, strict=True))
    if target.snr is not None:
        chosen = within_error(options, 10 ** (-target.snr / 10))
        if chosen is None:
            lost = sum(some[i].error for some, i in zip(options, start, strict=True))
            best = decibel(steps[-1].error if steps else lost)
            raise RecipeError(f"target snr {target.snr} dB: at best {best:.1f} dB can be reached")
        return chosen
    if target.bits is not None:
        weights = sum(t.shape[0] * t.shape[1] for t in layers)
        limit = int(target.bits * weights / 8)
        chosen = within_bytes(options, limit, alike)
        if chosen is None:
            least = smallest * 8 / weights
            raise RecipeError(f"target of {target.bits} bits: at least {least:.2f} are needed")
        return chosen
    assert target.size is not None
    chosen = within_bytes(options, target.size - rest, alike)
    if chosen is None:
        raise RecipeError(
            f"target size {target.size:,} bytes: at least {smallest + rest:,} are needed; what is "
            "not quantized takes "
            f"{rest:,}: give a fallback format for it, or a larger target"
        )
    return chosen


def _curve(options: list[list[Option]], rest: int) -> tuple[tuple[int, float], ...]:
    start, steps = walk(options)
    first = [some[i] for some, i in zip(options, start, strict=True)]
    points = [(sum(o.nbytes for o in first), sum(o.error for o in first))]
    points += [(step.nbytes, step.error) for step in steps]
    return tuple((n + rest, decibel(e)) for n, e in points if e > 0)


def _alike(ways: list[list[Way]]) -> dict[str, list[int]]:
    """Choices that store every layer in the same way, by what it is."""
    found: dict[str, list[int]] = {}
    for mine in ways:
        for i, way in enumerate(mine):
            if way.spec is not None:
                found.setdefault(way.spec.describe(), []).append(i)
    return {name: chosen for name, chosen in found.items() if len(chosen) == len(ways)}


def _uniform(
    ways: list[list[Way]], options: list[list[Option]], rest: int
) -> dict[str, tuple[int, float]]:
    """Bytes of the file and dB of each way that suits every layer, alone."""
    found = {}
    for name, chosen in _alike(ways).items():
        picked = [some[i] for some, i in zip(options, chosen, strict=True)]
        size = sum(o.nbytes for o in picked) + rest
        found[name] = size, decibel(sum(o.error for o in picked))
    return found
