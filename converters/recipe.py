"""The recipe: every setting of a conversion in one validated, immutable, serialisable object.

The node, the command line's flags, a JSON file and the metadata written into the output are the
same recipe, so any file tells how it was made and can be made again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ..errors import RecipeError
from ..layouts import get_format
from .matching import check_pattern, search_pattern
from .rounding import CalibratedOptions, LearnedOptions
from .strict import Strict

Rounding = Literal["auto", "nearest", "calibrated", "learned"]
_ROUNDING = (
    "how codes are chosen: nearest; calibrated or learned on the layer's inputs; auto, the best "
    "that the statistics at hand support"
)
_TIED = ("scaling", "group_size", "convrot", "variant", "form")
METADATA_KEY = "roundsmith_recipe"


class Options(Strict):
    """How one layer is quantized.

    None takes the format's own default, or the recipe's in a rule.
    """

    format: str | None = Field(None, description="storage format, by its id")
    scaling: Literal["tensor", "row"] | None = Field(
        None, description="one scale a tensor or a row, where the format has both"
    )
    group_size: int | None = Field(None, description="block size, where the format has one")
    convrot: int | Literal["auto"] | None = Field(
        None, description="ConvRot group size, or auto: the largest of 256, 1024 that divides"
    )
    variant: str | None = Field(
        None, description="which of the format's variants, where it has some"
    )
    form: str | None = Field(
        None, description="how the file says it, where tools differ: the values are the same"
    )
    rounding: Rounding | None = Field(None, description=_ROUNDING)
    scale_search: bool | None = Field(
        None, description="search each scale for the least error; by default where that pays"
    )
    full_precision_matrix_mult: bool | None = Field(
        None,
        description="decode and multiply in the compute dtype at run time; by default only layers "
        "that statistics show to see few tokens a call, where codes would save no time",
    )

    @model_validator(mode="after")
    def _check_format(self) -> Options:
        if self.format is not None:
            fmt = get_format(self.format)
            asked = {name: getattr(self, name) for name in _TIED}
            fmt.bind(**asked)
            object.__setattr__(self, "format", fmt.id)
        return self

    def over(self, base: Options) -> Options:
        """These options, with what is not set taken from ``base``.

        Options that belong to a format (scaling, group size, ConvRot, variant, form) are inherited
        only where both name the same format.
        """
        merged = {name: getattr(self, name) for name in Options.model_fields}
        same = self.format is None or self.format == base.format
        for name in Options.model_fields:
            if merged[name] is None and (same or name not in _TIED):
                merged[name] = getattr(base, name)
        return Options(**merged)


class Rule(Options):
    """Options for the layers whose name a pattern matches."""

    match: str = Field(description="regular expression, searched in the layer's name")
    skip: bool = Field(False, description="keep these layers in high precision")

    @field_validator("match")
    @classmethod
    def _check_match(cls, pattern: str) -> str:
        return check_pattern(pattern)

    def matches(self, layer: str) -> bool:
        """Whether the rule speaks of ``layer``."""
        return search_pattern(self.match, layer)


class Recipe(Options):
    """A conversion. Precedence of what decides about a layer: ``rules`` in order, then ``exclude``
    and the preset (then ``fallback``), then the recipe itself."""

    format: str = Field("float8_e4m3fn", description="storage format, by its id")
    rounding: Rounding = Field("auto", description=_ROUNDING)
    preset: str | tuple[str, ...] | None = Field(
        "auto", description="which layers stay in high precision: auto, preset names, or none"
    )
    rules: tuple[Rule, ...] = Field((), description="options by layer; the first match wins")
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
    header: bool = Field(True, description="write the layers' JSON into the file header too")
    seed: int = Field(0, ge=0, description="seed of everything random")
    device: str = Field("auto", description="where rounding runs: auto, cpu, cuda, cuda:1, ...")

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

    @property
    def uses_statistics(self) -> bool:
        """Whether statistics of the layers' inputs would change how some layer is rounded."""
        ways = {options.rounding for options in (self, *self.rules, self.fallback or self)}
        return bool(ways - {"nearest", None})

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
        """Read a recipe from a JSON file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"cannot read {path}: {error.strerror or error}") from error
        return cls.from_json(text, str(path))
