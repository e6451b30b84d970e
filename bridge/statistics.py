"""Statistics for quantizing what is loaded: those that are connected, or the model's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from ..converters import Recipe
from ..converters.calibration import Calibration
from .networks import DIFFUSION
from .self_calibration import SelfCalibration


class ModelStatistics(NamedTuple):
    """What is known of a model's inputs while it is quantized.

    Attributes:
        calibration: the statistics, or None.
        note: how they came about, or why there are none, for the report; "" where a person gave
            them.
    """

    calibration: Calibration | None
    note: str = ""

    def under(self, prefix: str) -> Calibration | None:
        """Statistics of the part of a model that ``prefix`` names: a CLIP's, by encoder."""
        if self.calibration is None or prefix == DIFFUSION:
            return self.calibration
        return self.calibration.under(prefix)


_unfinished: weakref.WeakKeyDictionary[Any, tuple[Any, ModelStatistics]] = (
    weakref.WeakKeyDictionary()
)


def statistics_for(
    patcher: Any,
    recipe: Recipe,
    calibration: Calibration | None,
    calibrate: Callable[[], SelfCalibration],
) -> ModelStatistics:
    """The connected calibration; without one, the model calibrates itself where that helps.

    A run that was cancelled finds its model's own calibration again, so that its finished layers
    are still good.
    """
    if calibration is not None or not recipe.uses_statistics:
        return ModelStatistics(calibration)
    held = _unfinished.get(patcher.model)
    if held is not None and held[0] == patcher.patches_uuid:
        return held[1]
    made = ModelStatistics(*calibrate())
    _unfinished[patcher.model] = (patcher.patches_uuid, made)
    return made


def finished(patcher: Any) -> None:
    """Forget a model's own calibration: what it was made for is done."""
    _unfinished.pop(patcher.model, None)
