"""Settings of a migration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ...layouts import get_format
from ..matching import check_pattern
from ..strict import Strict

Target = Literal["comfy_quant", "same", "fp8_scaled"]


class MigrateOptions(Strict):
    """What a checkpoint is made into, and what is settled by hand."""

    to: Target = Field(
        "comfy_quant",
        description="comfy_quant: what ComfyUI's and Roundsmith's loaders read; same: cleaned in "
        "the layout it has; fp8_scaled: the older layout of FP8 files",
    )
    hp_filter: str | None = Field(
        None, description="layers that must be in high precision (regex): an error if one is not"
    )
    full_precision_matrix_mult: bool | None = Field(
        None, description="for all layers; by default what the marker says"
    )
    add_input_scales: bool = Field(
        False, description="input scales of 1.0 for layers that take one and have none"
    )
    format: str | None = Field(
        None, description="format of layers that could be several, by their scales' shapes"
    )
    block_size: int | None = Field(
        None, gt=0, description="block size of layers that could be one block or unblocked"
    )
    layers: str | None = Field(
        None, description="format and block size are for these layers only (regex)"
    )
    marker: Literal[0, 1, 2] | None = Field(
        None, description="elements of the marker scaled_fp8 where the result has one"
    )

    @field_validator("hp_filter", "layers")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else check_pattern(pattern)

    @field_validator("format")
    @classmethod
    def _check_format(cls, name: str | None) -> str | None:
        return name if name is None else get_format(name).id

    @model_validator(mode="after")
    def _check_marker(self) -> MigrateOptions:
        if self.marker is not None and self.to == "comfy_quant":
            raise ValueError("marker: comfy_quant files have none; leave it out")
        if self.layers is not None and self.format is None and self.block_size is None:
            raise ValueError("layers: nothing is set for them; give format or block_size")
        full = self.full_precision_matrix_mult
        if None not in (self.marker, full) and (self.marker == 2) != full:
            raise ValueError(
                "marker and full_precision_matrix_mult contradict each other: a marker of 2 "
                "elements asks for full-precision products, one of 0 or 1 does not"
            )
        asks_full = self.marker == 2 or self.full_precision_matrix_mult is True
        if asks_full and self.add_input_scales:
            raise ValueError(
                "add_input_scales and full-precision products contradict each other: such products "
                "use no input scales"
            )
        return self
