"""Model presets: which layers of which family stay in high precision, and how one is recognised.

The families are data, in ``presets.json`` beside this file: a list of entries with ``name``,
``category``, ``help``, ``recognise``, ``keep`` and ``remove`` (patterns: see ``patterns.py``). A
person's own JSON file, in the same form, adds entries and overrides fields of those that exist.
Two entries are of category ``base``: *everywhere* applies to every model, *guess* (the usual names
of first and last projections) to models no entry describes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ..errors import RecipeError
from .patterns import bound, checked, counted, found

BUILTIN = Path(__file__).with_name("presets.json")
ENVIRONMENT = "ROUNDSMITH_PRESETS"

Role = Literal["model", "text_encoder", "vae", "other"]
Action = Literal["quantize", "keep", "remove"]
Kind = Literal["diffusion", "text_encoder", "checkpoint", "unknown"]

_VAE = re.compile(r"^(?:first_stage_model|vae|audio_vae|pretransform|vocoder)\.")
_TEXT_ENCODER = re.compile(
    r"^(?:text_encoders\.[^.]+|conditioner\.embedders\.\d+|cond_stage_model|text_encoder(?:_\d+)?"
    r"|text_embedding_projection)\.(?:transformer\.)?"
)
_SURE_PREFIXES = ("model.diffusion_model.",)
_MODEL_PREFIXES = (
    *_SURE_PREFIXES,
    "model.model.",
    "diffusion_model.",
    "net.",
    "transformer.",
    "unet.",
)
_EVERYWHERE = "everywhere"  # the base preset that holds for every model
_ACTIONS: tuple[Action, ...] = ("remove", "keep")
Split = dict[tuple[Role, str], list[str]]  # names of each part, stripped of its prefix and sorted


def _strip(name: str) -> str:
    """``name`` without the prefix of the model, text encoder or VAE it belongs to."""
    if prefix := _TEXT_ENCODER.match(name) or _VAE.match(name):
        return name[prefix.end() :]
    return next((name[len(p) :] for p in _MODEL_PREFIXES if name.startswith(p)), name)


class Rule(BaseModel):
    """Matches names that hold every pattern of ``all``, one of ``any`` (if given), no ``none``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    none: tuple[str, ...] = ()

    @field_validator("all", "any", "none")
    @classmethod
    def _not_empty(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return checked(patterns)

    def evidence(self, blob: str) -> list[str] | None:
        """What of the rule was found in ``blob`` (stripped names, one a line); None: no match."""
        if not (self.all or self.any) or any(found(p, blob) for p in self.none):
            return None
        some = [p for p in self.any if found(p, blob)]
        if (self.any and not some) or not all(found(p, blob) for p in self.all):
            return None
        return [counted(p, blob) for p in (*self.all, *some)]


class Preset(BaseModel):
    """One family: how it is recognised, what stays in high precision, what is dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    category: Literal["diffusion", "text_encoder", "base"]
    help: str = ""
    recognise: tuple[Rule, ...] = ()  # any of them; none: the preset is chosen by hand only
    keep: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    @field_validator("keep", "remove")
    @classmethod
    def _not_empty(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return checked(patterns)

    def match(self, layer_name: str) -> str | None:
        """``remove:<pattern>``, ``keep:<pattern>`` or None for a layer's or tensor's full name."""
        return self.match_stripped(_strip(layer_name))

    def match_stripped(self, name: str) -> str | None:
        """As :meth:`match`, for a name whose prefix is off already."""
        for action, patterns in (("remove", self.remove), ("keep", self.keep)):
            for pattern in patterns:
                if found(pattern, name):
                    return f"{action}:{pattern}"
        return None

    def bind(self, blob: str) -> Preset:
        """This preset with ``{last}`` replaced by the model's highest block index."""
        return self.model_copy(update={"keep": tuple(bound(p, blob) for p in self.keep)})


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


def user_presets_file() -> Path:
    """A person's own presets: ``$ROUNDSMITH_PRESETS``, else a file of the configuration folder."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given)
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return folder / "roundsmith" / "presets.json"


def _load(extra: Path | None) -> dict[str, Preset]:
    entries: dict[str, dict[str, Any]] = {}
    presets = _read(BUILTIN, entries)
    file = Path(extra) if extra else user_presets_file()
    return {**presets, **_read(file, entries)} if extra or file.is_file() else presets


def _read(file: Path, entries: dict[str, dict[str, Any]]) -> dict[str, Preset]:
    """The presets of one file; each entry is laid over the one of its name in ``entries``."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: cannot be read as presets: {error}") from error
    if not isinstance(content, list):
        raise RecipeError(f"{file}: presets are a list of entries, not a {type(content).__name__}")
    presets = {}
    for index, entry in enumerate(content):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name or name == "auto":
            raise RecipeError(f"{file}: entry {index}: field 'name' is missing or not a name")
        entries[name] = {**entries.get(name, {}), **entry}
        try:
            presets[name] = Preset.model_validate(entries[name])
        except ValidationError as error:
            fault = error.errors()[0]
            where = f"entry {index} ({name!r}): field {'.'.join(map(str, fault['loc']))!r}"
            raise RecipeError(f"{file}: {where}: {fault['msg']}") from error
    return presets


def load_presets(extra: Path | None = None) -> dict[str, Preset]:
    """All presets by name: the built-in ones, then those of ``extra``.

    Without ``extra``, :func:`user_presets_file` is read where it is there.
    Raises RecipeError naming the file, the entry and the field when a file is not valid.
    """
    return {name: preset for name, preset in _load(extra).items() if preset.category != "base"}


def _split(names: Iterable[str]) -> Split:
    """Names by part of the file (role and prefix), stripped of the prefix, sorted."""
    parts: Split = {}
    rest: list[str] = []
    for name in sorted(set(names)):
        if match := _VAE.match(name):
            parts.setdefault(("vae", match.group()), []).append(name[match.end() :])
        elif match := _TEXT_ENCODER.match(name):
            parts.setdefault(("text_encoder", match.group()), []).append(name[match.end() :])
        else:
            rest.append(name)
    prefix = ""
    for candidate in reversed(_MODEL_PREFIXES):
        enough = 5 if candidate in _SURE_PREFIXES else len(rest) // 2
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


def detect(names: Iterable[str], extra: Path | None = None) -> Detection:
    """Recognise a model by its tensor names alone; their order plays no part.

    ``extra`` is a file of presets, as for :func:`load_presets`.
    """
    return _detect(_split(names), load_presets(extra), extra)


def _detect(split: Split, presets: dict[str, Preset], extra: Path | None) -> Detection:
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
        file = extra or user_presets_file()
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
    presets: str | Sequence[str] | None, names: Iterable[str], extra: Path | None = None
) -> Policy:
    """The policy for a file with these tensor names.

    ``presets`` is "auto" (recognise each part of the file), a name, several (combined: what any of
    them keeps is kept), or None (only the rule that holds everywhere). In a checkpoint, a text
    encoder is left alone unless it is recognised and a preset for it was asked for. Raises
    RecipeError for a name that is not there.
    """
    known = _load(extra)
    asked = [] if presets is None else [presets] if isinstance(presets, str) else list(presets)
    for name in asked:
        if name != "auto" and (name not in known or known[name].category == "base"):
            choices = ", ".join(sorted(n for n, p in known.items() if p.category != "base"))
            raise RecipeError(f"unknown preset {name!r}; there are: auto, {choices}")
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
