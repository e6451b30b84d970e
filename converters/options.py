"""How one layer is quantized: the options of a recipe, a rule or a layer config's entry."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ..layouts import get_format
from .matching import check_pattern, search_pattern
from .strict import Strict

Goal = Literal["quality", "balance", "smallest", "fastest"]
Rounding = Literal["auto", "nearest", "calibrated", "learned"]
ROUNDING_HELP = (
    "how codes are chosen: nearest; calibrated or learned on the layer's inputs; auto, the best "
    "that the statistics at hand support"
)
AUTO = "auto"
"""In a recipe's format: chosen for the model, the device and the goal."""
TIED = ("scaling", "group_size", "convrot", "variant", "form")


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
    rounding: Rounding | None = Field(None, description=ROUNDING_HELP)
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
        if self.format == AUTO:
            self._check_auto()
        elif self.format is not None:
            fmt = get_format(self.format)
            asked = {name: getattr(self, name) for name in TIED}
            fmt.bind(**asked)
            object.__setattr__(self, "format", fmt.id)
        return self

    def _check_auto(self) -> None:
        raise ValueError("format auto holds for a whole recipe; name a format here")

    def over(self, base: Options) -> Options:
        """These options, with what is not set taken from ``base``.

        Options that belong to a format (scaling, group size, ConvRot, variant, form) are inherited
        only where both name the same format.
        """
        return _over(_Pair(self, base))


class _Pair:
    """Two objects, equal to a pair of the same two: what is merged once is not merged again."""

    def __init__(self, one: Options, base: Options) -> None:
        self.one, self.base = one, base

    def __hash__(self) -> int:
        return hash((id(self.one), id(self.base)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pair) and self.one is other.one and self.base is other.base


@lru_cache(maxsize=1024)
def _over(pair: _Pair) -> Options:
    merged = {name: getattr(pair.one, name) for name in Options.model_fields}
    same = pair.one.format is None or pair.one.format == pair.base.format
    for name in Options.model_fields:
        if merged[name] is None and (same or name not in TIED):
            merged[name] = getattr(pair.base, name)
    return Options(**merged)


class Rule(Options):
    """Options for the layers whose name a pattern matches."""

    match: str = Field(description="regular expression, searched in the layer's name")
    skip: bool = Field(False, description="keep these layers in high precision")

    @field_validator("match")
    @classmethod
    def _check_match(cls, pattern: str) -> str:
        return check_pattern(pattern)

    @model_validator(mode="after")
    def _check_skip(self) -> Rule:
        given = [name for name in Options.model_fields if getattr(self, name) is not None]
        if self.skip and given:
            raise ValueError(
                f"rule {self.match!r}: skip keeps its layers as they are, and {', '.join(given)} "
                "would change them: leave one out"
            )
        return self

    def matches(self, layer: str) -> bool:
        """Whether the rule speaks of ``layer``."""
        return search_pattern(self.match, layer)
