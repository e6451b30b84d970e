"""The presets: what each says, and where they are read from.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ..errors import RecipeError
from .patterns import bound, checked, counted, found

BUILTIN = Path(__file__).with_name("presets.json")
ENVIRONMENT = "ROUNDSMITH_PRESETS"

VAE = re.compile(r"^(?:first_stage_model|vae|audio_vae|pretransform|vocoder)\.")
TEXT_ENCODER = re.compile(
    r"^(?:text_encoders\.[^.]+|conditioner\.embedders\.\d+|cond_stage_model|text_encoder(?:_\d+)?"
    r"|text_embedding_projection)\.(?:transformer\.)?"
)
SURE_PREFIXES = ("model.diffusion_model.",)
MODEL_PREFIXES = (
    *SURE_PREFIXES,
    "model.model.",
    "diffusion_model.",
    "net.",
    "transformer.",
    "unet.",
)


def _strip(name: str) -> str:
    """``name`` without the prefix of the model, text encoder or VAE it belongs to."""
    if prefix := TEXT_ENCODER.match(name) or VAE.match(name):
        return name[prefix.end() :]
    return next((name[len(p) :] for p in MODEL_PREFIXES if name.startswith(p)), name)


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


_folders: list[Path] = []


def look_for_presets_in(folder: Path) -> None:
    """Look for a person's own presets in ``folder`` too, before the configuration folder."""
    if folder not in _folders:
        _folders.append(folder)


def user_presets_file() -> Path:
    """A person's own presets: ``$ROUNDSMITH_PRESETS``, else the first ``presets.json`` there is in
    a folder of :func:`look_for_presets_in` or the configuration folder, else where to put one."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given)
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "roundsmith"
    files = [folder / "presets.json" for folder in (*_folders, config)]
    return next((file for file in files if file.is_file()), files[0])


Extra = Path | Sequence["Preset"] | None
"""A person's own presets: their file, themselves, or None for :func:`user_presets_file`'s."""


def all_presets(extra: Extra = None) -> dict[str, Preset]:
    """Every preset by name, those of category ``base`` too; a person's own lie over the others.

    Raises :class:`RecipeError` naming the file, the entry and the field that is not valid.
    """
    return {**_builtin(), **{preset.name: preset for preset in own_presets(extra)}}


def own_presets(extra: Extra = None) -> tuple[Preset, ...]:
    """A person's own presets, entries of built-in names laid over those. Raises
    :class:`RecipeError` as :func:`all_presets`."""
    if extra is not None and not isinstance(extra, Path):
        return tuple(extra)
    file = extra or user_presets_file()
    if extra is None and not file.is_file():
        return ()
    return tuple(_read(file, _entries(BUILTIN)).values())


def load_presets(extra: Extra = None) -> dict[str, Preset]:
    """The presets a person may name: those of :func:`all_presets` that are not ``base``."""
    return {n: preset for n, preset in all_presets(extra).items() if preset.category != "base"}


def complete(entries: Any) -> Any:
    """Entries as a presets file has them, those of built-in names laid over the built-in ones."""
    known = _entries(BUILTIN)
    if not isinstance(entries, (list, tuple)):
        return entries
    return [
        {**known.get(entry["name"], {}), **entry}
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        else entry
        for entry in entries
    ]


def _builtin() -> dict[str, Preset]:
    return _read(BUILTIN, {})


def _entries(file: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads(file.read_text(encoding="utf-8"))}


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
