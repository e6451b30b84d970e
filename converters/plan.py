"""The plan: what happens to each tensor of a model, and the exact file it makes, before any weight
is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import torch

from ..checkpoints import Entry, checkpoint_size, encode_conf, layers_metadata
from ..checkpoints.quantization import HEADER_KEY
from ..layouts import Candidate, Format, Spec, get_format
from .matching import search_pattern
from .model import ModelView
from .options import AUTO, TIED
from .output import written
from .policies import Decisions, decisions
from .preset_files import own_presets
from .presets import Decision
from .recipe import METADATA_KEY, Options, Recipe
from .source import Description
from .stored import empty_parts
from .suggestion import Device, Suggestion, suggest, this_device

Action = Literal["quantize", "keep", "remove", "copy"]
Known = Callable[[str, str], bool]
_TINY = 128 * 128
_EXTREME_ASPECT = 64


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one tensor.

    Attributes:
        name: its name in the source.
        action: ``quantize``; ``keep`` (a weight left as it is); ``copy`` (not a weight);
            ``remove``.
        shape: its logical shape.
        spec: what it is stored as, where it is quantized.
        options: what the recipe says of it, where it is quantized.
        reason: why it is kept or removed, or is not stored just as asked.
        entries: the output tensors it makes, by name.
        conf: the JSON of the layer, where the output is quantized.
        bytes_before: bytes in the source, scales included.
        input_scale: where its fixed input scale comes from, as the recipe says it; "" for none.
    """

    name: str
    action: Action
    shape: tuple[int, ...]
    spec: Spec | None = None
    options: Options | None = None
    reason: str = ""
    entries: Mapping[str, Entry] = field(default_factory=dict)
    conf: Mapping[str, Any] | None = None
    bytes_before: int = 0
    input_scale: str = ""

    @property
    def layer(self) -> str:
        """The layer's name: the tensor's without ``.weight``."""
        return self.name.removesuffix(".weight")

    @property
    def bytes_after(self) -> int:
        """Bytes in the output, scales included, JSON left out."""
        return sum(
            entry_nbytes(e) for n, e in self.entries.items() if not n.endswith(".comfy_quant")
        )


@dataclass(frozen=True)
class Plan:
    """What happens to every tensor, the metadata of the output, and what a person should know.

    Attributes:
        tensors: the source's tensors in order, each with what it makes.
        metadata: of the output.
        preset: the names of the presets that decide.
        evidence: what they were recognised by.
        warnings: what a person should know.
        choice: why this format, where it was chosen for the goal.
        names: the file's name of each output tensor that has another one there.
        markers: output tensors that come from no tensor of the source; all zeros.
    """

    tensors: tuple[TensorPlan, ...]
    metadata: Mapping[str, str]
    preset: str
    evidence: str
    warnings: tuple[str, ...]
    choice: Suggestion | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    markers: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def entries(self) -> dict[str, Entry]:
        """Every output tensor: dtype, shape."""
        found = {name: entry for t in self.tensors for name, entry in t.entries.items()}
        return {**found, **self.markers}

    @property
    def size(self) -> int:
        """Size of the output file in bytes, exact."""
        return checkpoint_size(self.entries, self.metadata)


def entry_nbytes(entry: Entry) -> int:
    """Bytes of an output tensor."""
    if len(entry) == 3:
        return entry[2]
    assert isinstance(entry[0], torch.dtype)
    return Description(entry[0], entry[1]).nbytes


def make_plan(
    model: ModelView,
    recipe: Recipe,
    keep: Mapping[str, str] | None = None,
    known: Known | None = None,
) -> Plan:
    """Decide about every tensor of ``model``.

    Args:
        model: the source.
        recipe: the settings.
        keep: layers to keep whatever the recipe says, with the reason (non-finite weights).
        known: what is known of a layer's inputs: whether its range is, ``"calibrated"`` or
            ``"imported"``, or that it sees ``"few tokens"`` a call.
    """
    recipe, choice = choose_format(model, recipe)
    own = own_presets(recipe.presets or None)
    decided = decisions(model, recipe.preset, own)
    policy = decided.policy
    facts = known or (lambda layer, what: False)
    tensors = tuple(
        _plan_tensor(model, name, recipe, decided, keep or {}, facts) for name in model.names
    )
    out = written(tensors, recipe)
    warnings = [*policy.warnings, *model.notes, *out.warnings]
    quantized = sum(t.action == "quantize" for t in tensors)
    warnings += _unused(recipe)
    if not quantized:
        warnings.append("nothing was quantized: no layer suits the recipe; see the reasons")
    confs = {
        t.layer: dict(t.conf)
        for t in out.tensors
        if t.conf is not None and f"{t.layer}.comfy_quant" in t.entries
    }
    metadata = {k: v for k, v in model.source.metadata.items() if k != HEADER_KEY}
    if confs and recipe.header:
        metadata[HEADER_KEY] = layers_metadata(confs)
    used = tuple(p for p in own if p.name in policy.presets or p.category == "base")
    metadata[METADATA_KEY] = recipe.model_copy(update={"presets": used}).to_json()
    preset = "+".join(policy.presets) or ("none" if recipe.preset is None else "unknown model")
    evidence = policy.detection.evidence
    return Plan(
        *(out.tensors, metadata, preset, evidence, tuple(warnings), choice),
        names=out.names,
        markers=out.markers,
    )


def choose_format(
    model: ModelView, recipe: Recipe, device: Device | None = None
) -> tuple[Recipe, Suggestion | None]:
    """The recipe with ``format="auto"`` replaced by what suits ``device`` (by default this one),
    and why; as it is, and None, where it names a format."""
    if recipe.format != AUTO:
        return recipe, None

    def named(fmt: Format, candidate: Candidate) -> Recipe:
        options = Options(format=fmt.id, **candidate.options)
        changes = {"format": fmt.id, **{name: getattr(options, name) for name in TIED}}
        return recipe.model_copy(update=changes)

    found = suggest(
        recipe.goal,
        device or this_device(),
        lambda fmt, candidate: make_plan(model, named(fmt, candidate)).size,
    )
    return named(found.chosen.format, found.chosen.candidate), found


def _plan_tensor(
    model: ModelView,
    name: str,
    recipe: Recipe,
    decided: Decisions,
    keep: Mapping[str, str],
    known: Known,
) -> TensorPlan:
    shape = model.shape(name)
    layer = name.removesuffix(".weight")
    before = model.nbytes(name)
    decision = decided.decide(layer, shape)
    if decision.action == "remove":
        return TensorPlan(name, "remove", shape, reason=decision.reason, bytes_before=before)
    if not name.endswith(".weight") or not model.is_weight(name):
        copied = {name: model.described(name).entry}
        return TensorPlan(name, "copy", shape, entries=copied, bytes_before=before)
    if layer in keep:
        return _kept(model, name, keep[layer])
    options, reason = _options(layer, shape, recipe, decision)
    if options is None:
        return _kept(model, name, reason)
    assert options.format is not None
    fmt = get_format(options.format)
    exact = options.full_precision_matrix_mult
    if exact is None and recipe.output == "comfy_quant" and known(layer, "few tokens"):
        exact, reason = True, "; ".join(filter(None, (reason, "few tokens a call: decoded first")))
    asked = (options.scaling, options.group_size, options.convrot, options.variant, options.form)
    spec, note, conf, storage, length = _stored_as(fmt, asked, bool(exact), shape)
    if spec is None:
        return _kept(model, name, note)
    entries: dict[str, Entry] = {f"{layer}.{suffix}": entry for suffix, entry in storage}
    if length:
        entries[f"{layer}.comfy_quant"] = (torch.uint8, (length,))
    scale = "" if fmt.input_max is None else _input_scale(layer, recipe, known)
    if scale:
        entries[f"{layer}.input_scale"] = (torch.float32, ())
    why = note or reason
    return TensorPlan(name, "quantize", shape, spec, options, why, entries, conf, before, scale)


@lru_cache(maxsize=1024)
def _stored_as(
    fmt: Format, asked: tuple[Any, ...], exact: bool, shape: tuple[int, ...]
) -> tuple[Spec | None, str, Mapping[str, Any], tuple[tuple[str, Entry], ...], int]:
    """How a matrix of ``shape`` is stored (None: not in this format), why not just as asked, its
    JSON, its tensors by suffix, and the bytes of the JSON (0: it has none). Models have many layers
    of a few shapes."""
    scaling, group_size, convrot, variant, form = asked
    wanted = fmt.bind(
        scaling=scaling,
        group_size=group_size,
        convrot=convrot,
        variant=variant,
        form=form,
        features=shape[-1] if shape else 0,
        full_precision_matrix_mult=exact,
    )
    spec, note = fmt.fit(wanted, shape)
    if spec is None:
        return None, note, {}, (), 0
    if convrot == "auto" and spec.convrot is None:
        note = "; ".join(filter(None, (note, f"no ConvRot group divides {shape[1]}: unrotated")))
    matrix = (shape[0], shape[1])
    conf = fmt.conf(spec, matrix)
    length = len(encode_conf(conf)) if fmt.has_json(conf) else 0
    return spec, note, MappingProxyType(conf), tuple(fmt.storage(spec, matrix).items()), length


def _input_scale(layer: str, recipe: Recipe, known: Known) -> str:
    """Where a layer's fixed input scale comes from, "" for none."""
    asked = recipe.input_scale
    if asked in ("constant", "weight"):
        return asked
    if asked == "imported" and known(layer, asked):
        return asked
    return "calibrated" if asked != "none" and known(layer, "calibrated") else ""


def _options(
    layer: str, shape: tuple[int, ...], recipe: Recipe, decision: Decision
) -> tuple[Options | None, str]:
    """What the recipe says of a layer (None: keep it), and why."""
    for number, rule in enumerate(recipe.rules, 1):
        if rule.matches(layer):
            why = f"rule {number}: {rule.match}"
            return (None, why) if rule.skip else (rule.over(recipe), "" if len(shape) == 2 else why)
    configured = recipe.configured(layer)
    if configured is not None:
        pattern, entry = configured
        why = f"layer config: {pattern}"
        return (None, why) if entry.skip else (entry.over(recipe), "" if len(shape) == 2 else why)
    reason = decision.reason if decision.action == "keep" else ""
    excluded = next((p for p in recipe.exclude if search_pattern(p, layer)), None)
    if excluded is not None:
        reason = reason or f"exclude: {excluded}"
    if reason:
        if recipe.fallback is not None and not decision.final:
            return recipe.fallback.over(recipe), f"fallback; {reason}"
        return None, reason
    if recipe.heuristics:
        reason = _gains_little(shape)
    default = recipe.default_entry
    if not reason and default is not None:
        reason = "layer config: _default" if default.skip else ""
        return (None, reason) if reason else (default.over(recipe), "")
    return (None, reason) if reason else (recipe, "")


def _unused(recipe: Recipe) -> list[str]:
    """Rules that an earlier one of the same pattern leaves nothing to."""
    first: dict[str, int] = {}
    found = []
    for number, rule in enumerate(recipe.rules, 1):
        before = first.setdefault(rule.match, number)
        if before != number and rule != recipe.rules[before - 1]:
            found.append(
                f"rule {number} contradicts rule {before}, whose pattern {rule.match!r} is the "
                "same and which comes first: remove one"
            )
    return found


def _gains_little(shape: tuple[int, ...]) -> str:
    """Why a matrix of this shape is not worth quantizing, or ''."""
    if len(shape) != 2:
        return ""
    if shape[0] * shape[1] < _TINY:
        return f"heuristics: only {shape[0] * shape[1]} weights"
    if max(shape) > _EXTREME_ASPECT * min(shape):
        return f"heuristics: extreme aspect ratio {shape[0]}×{shape[1]}"
    return ""


def _kept(model: ModelView, name: str, reason: str) -> TensorPlan:
    """A weight that stays as the source has it; one that is quantized there keeps its codes."""
    shape, before = model.shape(name), model.nbytes(name)
    stored = model.stored_layer(name)
    if stored is None:
        entries = {name: model.described(name).entry}
        return TensorPlan(name, "keep", shape, None, None, reason, entries, None, before)
    layer = name.removesuffix(".weight")
    parts = stored.format.normalise(empty_parts(model.source, stored.parts), stored.conf)
    parts = stored.format.in_form(parts, stored.conf)
    entries = {f"{layer}.{s}": (t.dtype, tuple(t.shape)) for s, t in parts.items()}
    if stored.format.has_json(stored.conf):
        entries[f"{layer}.comfy_quant"] = (torch.uint8, (len(encode_conf(stored.conf)),))
    reason = f"{reason}; already {stored.format.id}"
    return TensorPlan(name, "keep", shape, None, None, reason, entries, stored.conf, before)
