"""The recipe: every setting of a conversion in one validated, immutable, serialisable object.

The node, the command line's flags, a JSON file and the metadata written into the output are the
same recipe, so any file tells how it was made and can be made again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ..checkpoints import Checkpoint
from ..errors import RecipeError
from ..layouts import get_format
from .layer_config import DEFAULT, LayerEntry, Match, most_specific
from .legacy_layout import holds
from .matching import check_pattern
from .options import AUTO, ROUNDING_HELP, TIED, Goal, Options, Rounding, Rule
from .preset_files import Preset, complete
from .rounding import CalibratedOptions, LearnedOptions

METADATA_KEY = "roundsmith_recipe"


class Recipe(Options):
    """A conversion. Precedence of what decides about a layer: ``rules`` in order, then the most
    specific entry of ``layer_config``, then ``exclude`` and the preset (then ``fallback``), then
    ``layer_config``'s ``_default``, then the recipe itself."""

    format: str = Field(
        "float8_e4m3fn", description="storage format, by its id, or auto: chosen for the goal"
    )
    goal: Goal = Field(
        "balance", description="what format auto is to reach: the most exact, fastest, smallest"
    )
    rounding: Rounding = Field("auto", description=ROUNDING_HELP)
    preset: str | tuple[str, ...] | None = Field(
        "auto", description="which layers stay in high precision: auto, preset names, or none"
    )
    presets: tuple[Preset, ...] = Field(
        (),
        description="presets of one's own that preset may name or recognise, as a presets file has "
        "them; by default those of the person's file, and an output says which of them decided",
    )
    rules: tuple[Rule, ...] = Field((), description="options by layer; the first match wins")
    layer_config: dict[str, LayerEntry] = Field(
        {}, description="options by pattern; the most specific wins; _default holds for the rest"
    )
    layer_config_match: Match = Field(
        "search", description="its patterns are searched in a layer's name, or are all of it"
    )
    exclude: tuple[str, ...] = Field((), description="patterns of layers kept in high precision")
    fallback: Options | None = Field(
        None, description="options for layers that exclude or the preset would keep"
    )
    heuristics: bool = Field(
        False, description="keep layers that gain little: tiny ones and extreme aspect ratios"
    )
    calibrated: CalibratedOptions = Field(
        CalibratedOptions(), description="settings of calibrated rounding"
    )
    learned: LearnedOptions = Field(LearnedOptions(), description="settings of learned rounding")
    bias_correction: bool = Field(
        True, description="correct biases for the measured mean error, where it helps"
    )
    input_scale: Literal["auto", "none", "constant", "weight", "calibrated", "imported"] = Field(
        "auto",
        description="fixed scale of a layer's inputs, for formats that take one: 1, the weight's, "
        "from statistics, or from a file; auto: from statistics where there are any",
    )
    input_scale_percentile: float = Field(
        100.0, gt=50, le=100, description="of the inputs' magnitudes; 100 is the true maximum"
    )
    input_scales: str | None = Field(
        None, description="JSON or safetensors file that input scales are imported from"
    )
    output: Literal["comfy_quant", "fp8_scaled"] = Field(
        "comfy_quant",
        description="how the file says what its layers are: comfy_quant, or fp8_scaled, the older "
        "layout of FP8 files",
    )
    keep_1d_scales: bool = Field(
        False, description="store a tensor's one scale as [1], as older tools do, instead of []"
    )
    header: bool = Field(True, description="write the layers' JSON into the file header too")
    seed: int = Field(0, ge=0, description="seed of everything random")
    device: str = Field("auto", description="where rounding runs: auto, cpu, cuda, cuda:1, ...")

    def _check_auto(self) -> None:
        set_too = [name for name in TIED if getattr(self, name) is not None]
        if set_too:
            raise ValueError(f"format auto chooses {', '.join(set_too)} as well; leave them out")

    @field_validator("presets", mode="before")
    @classmethod
    def _complete_presets(cls, entries: Any) -> Any:
        return complete(entries)

    @field_validator("layer_config")
    @classmethod
    def _check_layer_config(cls, config: dict[str, LayerEntry]) -> dict[str, LayerEntry]:
        for pattern in config:
            check_pattern(pattern)
        return config

    @field_validator("exclude")
    @classmethod
    def _check_exclude(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_pattern(pattern) for pattern in patterns)

    @field_validator("fallback")
    @classmethod
    def _check_fallback(cls, fallback: Options | None) -> Options | None:
        if fallback is not None and fallback.format is None:
            raise ValueError("fallback names no format")
        return fallback

    @model_validator(mode="after")
    def _check_input_scales(self) -> Recipe:
        if (self.input_scale == "imported") != (self.input_scales is not None):
            raise ValueError(
                f"input_scale is {self.input_scale} and input_scales is {self.input_scales}: "
                "imported and a file go together, give both or neither"
            )
        return self

    @model_validator(mode="after")
    def _check_output(self) -> Recipe:
        if self.output == "comfy_quant":
            return self
        parts: dict[str, Options | None] = {"format": self, "fallback": self.fallback}
        parts |= {f"rules.{i}": rule for i, rule in enumerate(self.rules)}
        parts |= {f"layer_config.{name}": entry for name, entry in self.layer_config.items()}
        for where, options in parts.items():
            name = None if options is None else options.format
            if name is not None and (name == AUTO or not holds(get_format(name))):
                raise ValueError(
                    f"output fp8_scaled holds FP8 with plain scales only, and {where} is {name}: "
                    "choose float8_e4m3fn, or output comfy_quant"
                )
        return self

    @property
    def in_memory(self) -> Recipe:
        """The recipe for a model that runs at once: how a file would say it does not count."""
        return self.model_copy(update={"output": "comfy_quant", "keep_1d_scales": False})

    @property
    def uses_statistics(self) -> bool:
        """Whether statistics of the layers' inputs would change how some layer is rounded."""
        layers = (*self.rules, *self.layer_config.values(), self.fallback or self)
        ways = {options.rounding for options in (self, *layers)}
        return bool(ways - {"nearest", None})

    def configured(self, layer: str) -> tuple[str, LayerEntry] | None:
        """The pattern and entry of ``layer_config`` that decide about a layer, if one does."""
        return most_specific(self.layer_config, layer, self.layer_config_match)

    @property
    def default_entry(self) -> LayerEntry | None:
        """``layer_config``'s ``_default``, if there is one."""
        return self.layer_config.get(DEFAULT)

    def to_json(self) -> str:
        """The settings that differ from the defaults, as JSON; :meth:`from_json` reads it."""
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    def from_json(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe from JSON text. Raises :class:`RecipeError` naming ``where``."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise RecipeError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(data, dict):
            raise RecipeError(f"{where}: a recipe is a JSON object, not a {type(data).__name__}")
        try:
            return cls(**data)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a JSON file, or the one that a quantized file was made with."""
        if Path(path).suffix == ".safetensors":
            with Checkpoint.open(path) as made:
                text = made.metadata.get(METADATA_KEY)
            if text is None:
                raise RecipeError(
                    f"{path} does not say how it was made: it is not a file of Roundsmith's"
                )
            return cls.from_json(text, f"{path}, {METADATA_KEY}")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"cannot read {path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{path} is not a recipe, it is no UTF-8 text ({error.reason}): give the JSON "
                "file, saved as UTF-8, or a file that was made with one"
            ) from error
        return cls.from_json(text, str(path))
