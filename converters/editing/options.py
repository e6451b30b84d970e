"""Settings of an edit."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from ..matching import check_pattern
from ..strict import Strict


class EditOptions(Strict):
    """What becomes of the JSON of which layers."""

    layers: str | None = Field(None, description="only layers in whose name this regex is found")
    set: dict[str, Any] = Field({}, description="keys written in every layer, new or not")
    add: dict[str, Any] = Field({}, description="keys written where a layer lacks them")
    update: dict[str, Any] = Field({}, description="keys written where a layer has them")
    remove: tuple[str, ...] = Field((), description="keys taken out")
    header: bool = Field(True, description="write the header too where the file has none")
    normalise_scalars: bool = Field(
        True, description="store scales in the shapes ComfyUI expects: [1] as [], [M] as [M, 1]"
    )

    @field_validator("layers")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else check_pattern(pattern)

    @model_validator(mode="after")
    def _check_keys(self) -> EditOptions:
        seen: dict[str, str] = {}
        for name in ("set", "add", "update", "remove"):
            for key in getattr(self, name):
                if not key or key == "params":
                    raise ValueError(
                        f"{name}: {key!r} is no key of its own; name the settings themselves"
                    )
                if key in seen:
                    raise ValueError(f"{key!r} is in {seen[key]} and in {name}: decide for one")
                seen[key] = name
        if "format" in self.remove:
            raise ValueError(
                "remove: 'format' says what a layer's codes are; without it nothing reads them. "
                "Set another one, or convert the layer"
            )
        return self

    @property
    def touched(self) -> frozenset[str]:
        """Keys that may change."""
        return frozenset({*self.set, *self.add, *self.update, *self.remove})

    def apply(self, conf: dict[str, Any]) -> dict[str, Any]:
        """A layer's JSON after the edit."""
        new = {**conf, **self.set}
        new.update({key: value for key, value in self.add.items() if key not in conf})
        new.update({key: value for key, value in self.update.items() if key in conf})
        return {key: value for key, value in new.items() if key not in self.remove}
