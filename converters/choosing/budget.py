"""A format for each layer, so that a file of a given size comes as near to the original as can be.

Each layer's error in each format comes from :mod:`.sensitivity`, the choice from :mod:`.hull`. The
result is a recipe: one rule a format, which a person may edit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...checkpoints import Checkpoint, encode_conf
from ...errors import Cancelled, RecipeError
from ...layouts import Candidate, Spec, formats, get_format
from ..calibration import Calibration, Record
from ..engine import CancelCallback, ProgressCallback, rounding_device
from ..model import ModelView
from ..options import Options, Rule
from ..plan import TensorPlan, entry_nbytes, make_plan
from ..presets import resolve
from ..recipe import Recipe
from ..report import Progress
from ..source import Source
from ..statistics import Statistics
from ..strict import Strict
from .hull import Option, walk, within_bytes, within_error
from .sensitivity import Way, layer_options

_TIED = ("scaling", "group_size", "convrot", "variant", "form")


class Target(Strict):
    """What a budget is for; exactly one of ``size``, ``bits`` and ``snr``."""

    size: int | None = Field(None, gt=0, description="bytes of the whole file, at most")
    bits: float | None = Field(
        None, gt=0, le=64, description="mean bits of a weight of the layers chosen for, at most"
    )
    snr: float | None = Field(
        None, gt=0, lt=200, description="dB of the layers' outputs, from their mean error, at least"
    )
    formats: tuple[str, ...] | None = Field(
        None, description="formats to choose from; by default all that run here"
    )
    keep: bool = Field(True, description="layers may also stay as they are")

    @model_validator(mode="after")
    def _one(self) -> Target:
        given = [name for name in ("size", "bits", "snr") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of size, bits and snr, not {' and '.join(given) or 'none'}")
        for name in self.formats or ():
            get_format(name)
        return self


@dataclass(frozen=True)
class Chosen:
    """What one layer gets.

    Attributes:
        layer: its name.
        spec: what it is stored as; None: it stays as it is.
        nbytes: bytes of that, its JSON in layer and header among them.
        error: relative error of its outputs (of its weights, without statistics).
    """

    layer: str
    spec: Spec | None
    nbytes: int
    error: float


@dataclass(frozen=True)
class Budget:
    """The choice, and what else there was to choose.

    Attributes:
        recipe: makes it: the recipe given, with a rule a format in front.
        layers: what each layer gets.
        curve: bytes of the file and dB, from the smallest choice to the most exact.
        uniform: bytes of the file and dB of each format alone, by what it is.
        size: bytes of the file.
        measured: ``"outputs"`` as executed, or ``"weights"`` where there were no statistics.
        notes: what a person should know.
    """

    recipe: Recipe
    layers: tuple[Chosen, ...]
    curve: tuple[tuple[int, float], ...]
    uniform: Mapping[str, tuple[int, float]]
    size: int
    measured: str
    notes: tuple[str, ...]

    @property
    def snr(self) -> float:
        """dB of the layers' mean relative error."""
        return _decibel(sum(c.error for c in self.layers), len(self.layers))

    def table(self) -> str:
        """A line for each layer, the most sensitive first."""
        width = max((len(c.layer) for c in self.layers), default=5)
        lines = [f"{'layer':{width}}  {'MB':>9}  {'dB':>6}  stored as"]
        for c in sorted(self.layers, key=lambda c: -c.error):
            level = f"{_decibel(c.error, 1):6.1f}" if c.error else "     –"
            what = c.spec.describe() if c.spec else "as it is"
            lines.append(f"{c.layer:{width}}  {c.nbytes / 1e6:9.2f}  {level}  {what}")
        lines.append(f"{self.size:,} bytes, {self.snr:.1f} dB ({self.measured})")
        lines += [
            f"  all {name}: {size:,} bytes, {snr:.1f} dB"
            for name, (size, snr) in sorted(self.uniform.items(), key=lambda item: item[1])
        ]
        return "\n".join([*lines, *self.notes])

    def json(self) -> str:
        """The choice for machines; ``recipe`` can be given to quantize."""
        layers = [
            {
                "name": c.layer,
                "stored_as": c.spec.describe() if c.spec else None,
                "bytes": c.nbytes,
                "error": c.error,
            }
            for c in self.layers
        ]
        top = {"size": self.size, "snr": _finite(self.snr), "measured": self.measured}
        uniform = {name: (size, _finite(snr)) for name, (size, snr) in self.uniform.items()}
        rest = {"curve": self.curve, "uniform": uniform, "notes": self.notes}
        recipe = json.loads(self.recipe.to_json())
        return json.dumps({**top, "recipe": recipe, "layers": layers, **rest}, ensure_ascii=False)


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
        calibration: statistics of the layers' inputs; without them weights decide.
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
        decodes = resolve(recipe.preset, model.names).detection.kind == "text_encoder"
    bad: dict[str, str] = {}
    ways: list[list[Way]] = []
    options: list[list[Option]] = []
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
        options.append(_tried(w, device, mine, record, calibrated, bool(decodes)))
    rest = plan.size - sum(t.bytes_after for t in layers)
    alike = list(_alike(ways).values())
    while True:
        chosen = _choose(target, layers, options, alike, rest)
        found = tuple(
            Chosen(t.layer, mine[i].spec, some[i].nbytes, some[i].error)
            for t, mine, some, i in zip(layers, ways, options, chosen, strict=True)
        )
        made = recipe.model_copy(update={"rules": (*_rules(found), *recipe.rules)})
        size = make_plan(model, made, bad, statistics.known).size
        if target.size is None or size <= target.size:
            break
        rest += size - target.size  # JSON and rules took more than was thought
    rest = size - sum(c.nbytes for c in found)
    measured = all(statistics.record(t.layer) is not None for t in layers)
    notes = [*statistics.notes, *(f"{layer}: {reason}" for layer, reason in bad.items())]
    if not measured:
        notes.append(
            "chosen by the weights' error, which says less than that of the outputs: connect or "
            "name a calibration" if calibration is None else
            "layers the calibration never reached were judged by their weights"
        )  # fmt: skip
    return Budget(
        made,
        found,
        _curve(options, rest),
        _uniform(ways, options, rest),
        size,
        "outputs, as executed" if measured else "weights",
        tuple(notes),
    )


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
    except torch.OutOfMemoryError:
        if device.type == "cpu":
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
                    **{option: getattr(asked, option) for option in _TIED},
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
        chosen = within_error(options, len(layers) * 10 ** (-target.snr / 10))
        if chosen is None:
            lost = sum(some[i].error for some, i in zip(options, start, strict=True))
            best = _decibel(steps[-1].error if steps else lost, len(layers))
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


def _rules(chosen: Sequence[Chosen]) -> list[Rule]:
    """One rule for each way that is used, the layers' names in its pattern."""
    by_spec: dict[Spec | None, list[str]] = {}
    for c in chosen:
        by_spec.setdefault(c.spec, []).append(c.layer)
    rules = []
    for spec, layers in by_spec.items():
        for pattern in _patterns(layers):
            if spec is None:
                rules.append(Rule(match=pattern, skip=True))
                continue
            said: dict[str, Any] = {name: getattr(spec, name) for name in _TIED}
            rules.append(Rule(match=pattern, format=spec.format, **said))
    return rules


def _patterns(layers: Sequence[str], longest: int = 900) -> list[str]:
    """Patterns that match just these names, each short enough for a rule."""
    found: list[str] = []
    names: list[str] = []
    for name in map(re.escape, layers):
        if names and sum(map(len, names)) + len(names) + len(name) > longest:
            found.append(f"^(?:{'|'.join(names)})$")
            names = []
        names.append(name)
    return [*found, f"^(?:{'|'.join(names)})$"] if names else found


def _curve(options: list[list[Option]], rest: int) -> tuple[tuple[int, float], ...]:
    start, steps = walk(options)
    first = [some[i] for some, i in zip(options, start, strict=True)]
    points = [(sum(o.nbytes for o in first), sum(o.error for o in first))]
    points += [(step.nbytes, step.error) for step in steps]
    return tuple((n + rest, _decibel(e, len(options))) for n, e in points if e > 0)


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
        found[name] = size, _decibel(sum(o.error for o in picked), len(picked))
    return found


def _finite(level: float) -> float | None:
    """None where nothing is lost, which JSON has no number for."""
    return level if math.isfinite(level) else None


def _decibel(error: float, count: int) -> float:
    """dB of a mean relative error."""
    return -10 * math.log10(error / count) if error > 0 else math.inf
