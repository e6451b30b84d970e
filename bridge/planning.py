"""What the layer picker asks: a model's layers, and what a recipe would make of them.

Only headers are read; what was read of the newest files is remembered until they change.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints import Checkpoint
from ..converters.matching import patience
from ..converters.model import ModelView
from ..converters.options import AUTO, Options, Rule
from ..converters.picking import patterns_for, place
from ..converters.plan import Plan, TensorPlan, choose_format, make_plan
from ..converters.recipe import Recipe
from ..converters.rule_text import Line, write_rule
from ..converters.suggestion import expected_snr, mean_snr, this_device
from ..errors import RecipeError, RoundsmithError
from ..layouts import formats, get_format
from .measured import measured_offsets
from .paths import list_sources, resolve_source

PATIENCE = 2.0
"""Seconds that all patterns of a request may take together."""

KEEP, RECIPE = "keep", "recipe"
_MOST_PICKS = 64


class Pick(NamedTuple):
    """A choice (:func:`choices`), ``keep`` or ``recipe`` (no rule), for layers by their names."""

    choice: str
    layers: frozenset[str]


class Asked(NamedTuple):
    """What the picker wants planned.

    Attributes:
        source: ``<folder>/<name>`` as ComfyUI lists it.
        recipe: the settings, without the rules.
        lines: the node's own rules, asked first.
        rules: rules connected, asked after them.
        picks: what was chosen by hand; asked before everything else.
        report: id of the details of an earlier run, for what was measured; "" for none.
        at: picks replace this one of ``rules`` instead (the picker of a Layer Rule).
    """

    source: str
    recipe: Recipe
    lines: Sequence[Line] = ()
    rules: Sequence[Rule] = ()
    picks: Sequence[Pick] = ()
    report: str = ""
    at: int | None = None


def sources(_: Mapping[str, str], __: Mapping[str, Any]) -> dict[str, Any]:
    """The files one can plan for."""
    return {"sources": list_sources()}


def layers(_: Mapping[str, str], body: Mapping[str, Any]) -> dict[str, Any]:
    """A model's layers, in the order that plans have, the positions of those that the pattern
    ``match`` finds, and the formats there are, with how many of the layers each fits."""
    view = open_view(body.get("source"))
    names = _layers(view)
    pattern = str(body.get("match") or "")
    with patience(PATIENCE):
        rule = [Rule(match=pattern, skip=True)] if pattern else []
        matched = [i for i, name in enumerate(names) if any(r.matches(name) for r in rule)]
    shapes = [view.shape(f"{name}.weight") for name in names]
    rows = []
    for name, shape in zip(names, shapes, strict=True):
        at = place(name)
        kind = at.kind if at.number else name
        rows.append([name, at.block, kind, shape, view.nbytes(f"{name}.weight")])
    offered = [_described(key, shapes) for key in choices()]
    return {"layers": rows, "matched": matched, "choices": offered}


def plan(asked: Asked) -> str:
    """The plan as JSON: ``layers``, a row each (what it is stored as, its format, bytes, expected
    dB or None, whether that was measured, the reason), where the first, second and last are
    positions in ``texts``; the file's size; the rules as text."""
    view = open_view(asked.source)
    names = _layers(view)
    with patience(PATIENCE), _no_collection():
        made, text = _rules(asked, names, view)
        recipe = _with_format(view, asked.recipe)
        recipe = recipe.model_copy(update={"rules": (*made, *recipe.rules)})
        planned = make_plan(view, recipe)
        by_name = {t.layer: t for t in planned.tensors}
        return json.dumps(_answer(planned, [by_name[name] for name in names], asked.report, text))


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection inside: a plan makes tens of thousands of objects without a cycle, and
    looking through all of ComfyUI's for one takes longer than the plan."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def choices() -> dict[str, Options]:
    """What a layer can be given: each format, with the options it does best with."""
    found = {}
    for fmt in formats().values():
        several = {json.dumps(c.options): c.options for c in fmt.candidates}
        for options in several.values() or ({},):
            words = [fmt.id, *(f"{name}={value}" for name, value in options.items())]
            found[" ".join(words)] = Options(format=fmt.id, **options)
    return found


def open_view(source: object) -> ModelView:
    """A file's tensors, remembered. Raises CheckpointError for what ComfyUI does not list."""
    if not isinstance(source, str):
        raise RoundsmithError("source: which file? a name as ComfyUI lists it is wanted")
    path = resolve_source(source)
    stat = path.stat()
    return _view(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _view(path: Path, changed: int, size: int) -> ModelView:
    with Checkpoint.open(path) as source:
        return ModelView(source)


def _with_format(view: ModelView, recipe: Recipe) -> Recipe:
    """The recipe, its format named: what auto chooses for a model is remembered."""
    return _chosen(view, recipe.to_json()) if recipe.format == AUTO else recipe


@lru_cache(maxsize=8)
def _chosen(view: ModelView, recipe: str) -> Recipe:
    return choose_format(view, Recipe.from_json(recipe))[0]


def _layers(view: ModelView) -> tuple[str, ...]:
    """The names of what can be picked: matrices of floating values, stored plain or quantized."""
    return tuple(
        name.removesuffix(".weight")
        for name in view.names
        if name.endswith(".weight") and view.is_weight(name) and len(view.shape(name)) == 2
    )


def _described(key: str, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    options = choices()[key]
    assert options.format is not None
    fmt = get_format(options.format)
    said = options.model_dump(include={"scaling", "group_size", "convrot", "variant"})
    spec = fmt.bind(**said, features=1024)
    fits = {s: fmt.fit(spec, s).spec is not None for s in set(shapes)}
    return {
        "key": key,
        "title": fmt.title,
        "stock": fmt.stock,
        "expected": expected_snr(spec, this_device()),
        "fits": sum(fits[shape] for shape in shapes),
    }


def _rules(asked: Asked, names: tuple[str, ...], view: ModelView) -> tuple[list[Rule], str]:
    """The rules in the order they are asked, and the text they make: of the node's own rules, or
    of one rule's pattern."""
    if len(asked.picks) > _MOST_PICKS:
        raise RoundsmithError(f"picks: {len(asked.picks)} given; at most {_MOST_PICKS}")
    known = set(names)
    for pick in asked.picks:
        strange = next(iter(pick.layers - known), None)
        if strange is not None:
            raise RoundsmithError(f"picks: {asked.source} has no layer {strange!r}")
    picked = [rule for pick in asked.picks for rule in _picked(pick, names)]
    if asked.at is not None:
        one = _joined(picked)
        after = list(asked.rules)
        after[asked.at : asked.at + 1] = one
        return after, one[0].match if one else ""
    lines = _left(asked, names)
    written = [*map(write_rule, picked), *(line.text for line in lines)]
    own = [line.rule for line in lines if line.rule is not None]
    return [*picked, *own, *asked.rules], "\n".join(written).strip()


def _picked(pick: Pick, names: tuple[str, ...]) -> list[Rule]:
    if pick.choice == RECIPE or not pick.layers:
        return []
    if pick.choice == KEEP:
        said: dict[str, Any] = {"skip": True}
    elif pick.choice in choices():
        said = choices()[pick.choice].model_dump(exclude_none=True)
    else:
        raise RoundsmithError(f"picks: no such choice {pick.choice!r}")
    return [Rule(match=pattern, **said) for pattern in patterns_for(pick.layers, names)]


def _joined(rules: Sequence[Rule]) -> list[Rule]:
    """Rules that differ in their pattern only, as one. Raises RecipeError for too long a one."""
    if not rules:
        return []
    pattern = "|".join(rule.match for rule in rules)
    try:
        return [Rule(**{**rules[0].model_dump(), "match": pattern})]
    except RecipeError as error:
        raise RecipeError(
            "these layers take too long a pattern for one rule: pick whole blocks or kinds, or use "
            "the picker of Quantization Recipe, which writes several"
        ) from error


def _left(asked: Asked, names: tuple[str, ...]) -> list[Line]:
    """The node's own lines, without those that picks leave nothing to decide in this model."""
    back = {name for pick in asked.picks if pick.choice == RECIPE for name in pick.layers}
    touched = {name for pick in asked.picks for name in pick.layers}
    undecided = set(names)
    lines = []
    for line in asked.lines:
        rule = line.rule
        if rule is None or not touched:
            lines.append(line)
            continue
        mine = {name for name in undecided if rule.matches(name)}
        undecided -= mine
        if mine & back:
            kept = patterns_for(mine - touched, names) if mine - touched else []
            some = [rule.model_copy(update={"match": pattern}) for pattern in kept]
            lines += [Line(write_rule(r), r) for r in some]
        elif not mine or mine - touched:
            lines.append(line)
    return lines


def _answer(planned: Plan, rows: Sequence[TensorPlan], report: str, text: str) -> dict[str, Any]:
    device, offsets = this_device(), measured_offsets(report, [t.layer for t in rows])
    texts: dict[str, int] = {}
    levels: list[float | None] = []
    found = []
    for t in rows:
        level = expected_snr(t.spec, device) if t.spec is not None else None
        known = level is not None and t.layer in offsets
        level = level + offsets[t.layer] if level is not None and known else level
        levels.append(math.inf if t.spec is None else level)
        what = t.spec.describe() if t.spec else str((t.conf or {}).get("format", ""))
        fmt = t.spec.format if t.spec else what
        numbers = [texts.setdefault(word, len(texts)) for word in (what, fmt, t.reason)]
        shown = None if level is None else round(level, 1)
        found.append([*numbers[:2], t.bytes_after, shown, int(known), numbers[2]])
    snr = mean_snr(levels)
    return {
        "size": planned.size,
        "before": sum(t.bytes_before for t in planned.tensors),
        "snr": snr if snr is not None and math.isfinite(snr) else None,
        "unknown": sum(level is None for level in levels),
        "measured": len(offsets),
        "offsets": [round(offsets[t.layer], 1) if t.layer in offsets else None for t in rows],
        "quantized": sum(t.action == "quantize" for t in rows),
        "texts": list(texts),
        "layers": found,
        "rules": text,
        "warnings": list(planned.warnings),
    }
