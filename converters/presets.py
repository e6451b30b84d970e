"""Which layers of a model stay in high precision: its family recognised, presets made a policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import RecipeError
from .preset_files import (
    MODEL_PREFIXES,
    SURE_PREFIXES,
    TEXT_ENCODER,
    VAE,
    Extra,
    Preset,
    all_presets,
    load_presets,
    user_presets_file,
)

Role = Literal["model", "text_encoder", "vae", "other"]
Action = Literal["quantize", "keep", "remove"]
Kind = Literal["diffusion", "text_encoder", "checkpoint", "unknown"]
_EVERYWHERE = "everywhere"  # the base preset that holds for every model
_ACTIONS: tuple[Action, ...] = ("remove", "keep")
Split = dict[tuple[Role, str], list[str]]  # names of each part, stripped of its prefix and sorted


@dataclass(frozen=True)
class Part:
    """A part of a file: the main model, a text encoder, a VAE, or leftovers."""

    role: Role
    prefix: str
    preset: str | None = None
    evidence: str = ""


@dataclass(frozen=True)
class Detection:
    """What a file holds, and by which keys. ``prefix`` is the main model's ("": it has none)."""

    preset: str | None
    evidence: str
    warning: str | None
    prefix: str
    kind: Kind
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What happens to a layer, and why. ``final``: no fallback format may take it all the same."""

    action: Action
    reason: str
    final: bool = False


def _split(names: Iterable[str]) -> Split:
    """Names by part of the file (role and prefix), stripped of the prefix, sorted."""
    parts: Split = {}
    rest: list[str] = []
    for name in sorted(set(names)):
        if match := VAE.match(name):
            parts.setdefault(("vae", match.group()), []).append(name[match.end() :])
        elif match := TEXT_ENCODER.match(name):
            parts.setdefault(("text_encoder", match.group()), []).append(name[match.end() :])
        else:
            rest.append(name)
    prefix = ""
    for candidate in reversed(MODEL_PREFIXES):
        enough = 5 if candidate in SURE_PREFIXES else len(rest) // 2
        if sum(name.startswith(candidate) for name in rest) > enough:
            prefix = candidate
    for name in rest:
        inside = name.startswith(prefix)
        key: tuple[Role, str] = ("model", prefix) if inside else ("other", "")
        parts.setdefault(key, []).append(name[len(prefix) :] if inside else name)
    return parts


def _recognise(blob: str, presets: Iterable[Preset]) -> tuple[str | None, str]:
    """The preset whose rule says the most about ``blob`` and the evidence; equal ones by name."""
    fits = []
    for preset in presets:
        for rule in preset.recognise:
            parts = rule.evidence(blob)
            if parts is not None:
                said = len(parts) + len(rule.none)
                fits.append((-said, preset.name, f"{preset.name}: {', '.join(parts)}"))
    if not fits:
        return None, ""
    _, name, evidence = min(fits)
    return name, evidence


def detect(names: Iterable[str], extra: Extra = None) -> Detection:
    """Recognise a model by its tensor names alone; their order plays no part.

    ``extra`` is a file of presets, as for :func:`load_presets`.
    """
    return _detect(_split(names), load_presets(extra), extra)


def _detect(split: Split, presets: dict[str, Preset], extra: Extra) -> Detection:
    parts = []
    for (role, prefix), names in split.items():
        wanted = [p for p in presets.values() if role == "model" or p.category == role]
        parts.append(Part(role, prefix, *_recognise("\n".join(names), wanted)))
    encoders = [part for part in parts if part.role == "text_encoder"]
    models = [part for part in parts if part.role == "model"] or encoders
    if not models:
        nothing = "there is no model here: only a VAE or nothing"
        return Detection(None, "", nothing, "", "unknown", tuple(parts))
    main = models[0]
    kind: Kind = "unknown"
    category = presets[main.preset].category if main.preset else None
    if "text_encoder" in (main.role, category):
        kind = "text_encoder"
    elif any(part.role in ("text_encoder", "vae") for part in parts):
        kind = "checkpoint"
    elif main.preset or main.prefix:
        kind = "diffusion"
    evidence = [main.evidence]
    evidence += [f"{p.prefix}{p.evidence}" for p in encoders if p.preset and p is not main]
    warning = None
    if main.preset is None:
        file = extra if isinstance(extra, Path) else user_presets_file()
        warning = (
            "unknown model: norms, embeddings and what look like its first and last projections "
            f"stay in high precision; choose a preset, or describe the model in {file}"
        )
    text = "; ".join(filter(None, evidence))
    return Detection(main.preset, text, warning, main.prefix, kind, tuple(parts))


@dataclass(frozen=True)
class Policy:
    """What presets say about each layer of one file; made by :func:`resolve`."""

    detection: Detection
    presets: tuple[str, ...]
    rules: dict[str, tuple[Preset, ...]] = field(repr=False)  # by a part's prefix; none: left alone
    warnings: tuple[str, ...] = ()

    def decide(self, layer_name: str, shape: Sequence[int]) -> Decision:
        """Quantize, keep or remove a layer (its name, or its tensor's) of this shape.

        Removing is decided first, so that biases and norms of a removed module go with it.
        """
        part = self._part(layer_name)
        if part.role == "vae":
            return Decision("keep", "a VAE is never quantized", final=True)
        presets = self.rules.get(part.prefix, ()) if part.role != "other" else ()
        if not presets and part.role == "text_encoder":
            encoder = part.prefix.rstrip(".")
            return Decision("keep", f"no preset for the text encoder {encoder}", final=True)
        if not presets:
            return Decision("keep", "not part of the model", final=True)
        name = layer_name[len(part.prefix) :]
        reasons = [(p.match_stripped(name), p.name) for p in presets]
        for action in _ACTIONS:
            for reason, preset in reasons:
                if reason and reason.startswith(action):
                    return Decision(action, f"{reason} ({preset})", final=preset == _EVERYWHERE)
        if len(shape) != 2:
            return Decision("keep", f"{len(shape)}-D", final=True)
        return Decision("quantize", "")

    def _part(self, name: str) -> Part:
        fits = [p for p in self.detection.parts if p.role != "other" and name.startswith(p.prefix)]
        return max(fits, key=lambda part: len(part.prefix), default=Part("other", ""))


def resolve(
    presets: str | Sequence[str] | None, names: Iterable[str], extra: Extra = None
) -> Policy:
    """The policy for a file with these tensor names.

    ``presets`` is "auto" (recognise each part of the file), a name, several (combined: what any of
    them keeps is kept), or None (only the rule that holds everywhere). In a checkpoint, a text
    encoder is left alone unless it is recognised and a preset for it was asked for. Raises
    RecipeError for a name that is not there.
    """
    known = all_presets(extra)
    asked = [] if presets is None else [presets] if isinstance(presets, str) else list(presets)
    for name in asked:
        if name != "auto" and (name not in known or known[name].category == "base"):
            choices = ", ".join(sorted(n for n, p in known.items() if p.category != "base"))
            raise RecipeError(
                f"unknown preset {name!r}; there are: auto, {choices}. Presets of your own go into "
                f"{user_presets_file()}"
            )
    split = _split(names)
    loaded = {name: preset for name, preset in known.items() if preset.category != "base"}
    detection = _detect(split, loaded, extra)
    named = [known[name] for name in asked if name != "auto"]
    auto = "auto" in asked
    has_encoders = any(part.role == "text_encoder" for part in detection.parts)
    rules: dict[str, tuple[Preset, ...]] = {}
    used: list[str] = []
    for part in detection.parts:
        if part.role == "model":
            chosen = [p for p in named if p.category == "diffusion" or not has_encoders]
        elif part.role == "text_encoder" and part.preset:
            chosen = [p for p in named if p.category == "text_encoder"]
        else:
            continue
        if auto and part.preset:
            chosen.insert(0, known[part.preset])
        if part.role == "text_encoder" and not chosen:
            continue
        used += [preset.name for preset in chosen]
        if auto and not chosen:
            chosen = [known["guess"]]
        blob = "\n".join(split[part.role, part.prefix])
        bound = {preset.name: preset.bind(blob) for preset in (*chosen, known[_EVERYWHERE])}
        rules[part.prefix] = tuple(bound.values())
    warnings = (detection.warning,) if detection.warning and auto and not used else ()
    return Policy(detection, tuple(dict.fromkeys(used)), rules, warnings)
