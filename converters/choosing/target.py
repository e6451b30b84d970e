"""What a budget is for."""

from __future__ import annotations

from pydantic import Field, model_validator

from ...layouts import get_format
from ..strict import Strict


class Target(Strict):
    """What a budget is for; exactly one of ``size``, ``bits`` and ``snr``."""

    size: int | None = Field(None, gt=0, description="bytes of the whole file, at most")
    bits: float | None = Field(
        None, gt=0, le=64, description="mean bits of a weight of the layers chosen for, at most"
    )
    snr: float | None = Field(
        None,
        gt=0,
        lt=200,
        description="dB, at least: of the model's output where influences are known, else of the "
        "layers' mean error",
    )
    formats: tuple[str, ...] | None = Field(
        None, description="formats to choose from; by default all that run here"
    )
    keep: bool = Field(True, description="layers may also stay as they are")

    @model_validator(mode="after")
    def _one(self) -> Target:
        given = [name for name in ("size", "bits", "snr") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of size, bits and snr, not {' and '.join(given) or 'none'}")
        for name in self.formats or ():
            get_format(name)
        return self
