"""What is known of the layers' inputs during a conversion: measured, or imported."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ..layouts import get_format
from .calibration import Calibration, Fingerprint, Record
from .corrections import input_scale, read_input_scales
from .corrections.input_scales import SMALLEST
from .corrections.names import LayerNames
from .model import ModelView
from .plan import Plan, TensorPlan
from .recipe import Recipe

_FEW_TOKENS = 8
_NAMED = 3
"""Layers a warning names."""


class Statistics:
    """Statistics and input scales by layer.

    Args:
        model: what is converted; its weights must be those the statistics belong to.
        recipe: where input scales come from.
        calibration: measured statistics, or None.

    Raises:
        RoundsmithError: statistics of another model.
        CheckpointError: a file of input scales that cannot be read.
    """

    def __init__(self, model: ModelView, recipe: Recipe, calibration: Calibration | None) -> None:
        self.recipe, self.calibration = recipe, calibration
        self.notes: list[str] = []
        if calibration is not None:
            self.notes += calibration.check(Fingerprint.of_view(model))
        path = recipe.input_scales
        self.imported: dict[str, float] = {}
        if path is not None:
            names = LayerNames(name.removesuffix(".weight") for name in model.names)
            for name, scale in read_input_scales(path).items():
                self.imported[names.find(name) or name] = scale

    def record(self, layer: str) -> Record | None:
        """Statistics of a layer's inputs; None where nothing was seen of it."""
        if self.calibration is None:
            return None
        record = self.calibration.record(layer)
        return record if record is not None and record.count else None

    def why_none(self, t: TensorPlan) -> str:
        """Why a layer is rounded without statistics, where a person would expect them."""
        assert t.options is not None
        if t.options.rounding == "nearest":
            return ""
        if self.calibration is not None:
            return "no statistics: the calibration run never reached it"
        if t.options.rounding == "calibrated":
            return "no statistics: no calibration was given"
        return ""

    def known(self, layer: str, what: str) -> bool:
        """Whether something is known of a layer's inputs.

        Args:
            layer: its name.
            what: ``"calibrated"`` or ``"imported"``: the range; ``"few tokens"``: that so few pass
                through it at a time that multiplying codes would save no time.
        """
        if what == "imported":
            return layer in self.imported
        if what == "few tokens":
            return self._tokens_a_call(layer) <= _FEW_TOKENS
        return self.record(layer) is not None

    def _tokens_a_call(self, layer: str) -> float:
        """Mean number of tokens in one call of the model; infinite where it is not known."""
        summary = None if self.calibration is None else self.calibration.summary(layer)
        if self.calibration is None or summary is None or not summary.count:
            return math.inf
        runs = self.calibration.settings.get("runs") or [self.calibration.settings]
        calls = sum(run.get("calls") or 0 for run in runs)
        return summary.count / calls if calls else math.inf

    def input_scale(
        self, t: TensorPlan, record: Record | None, parts: Mapping[str, Tensor]
    ) -> float | None:
        """A layer's fixed input scale as its plan says; ``parts``: its stored scales."""
        if t.input_scale == "constant":
            return 1.0
        if t.input_scale == "weight":
            return float(parts["weight_scale"])
        if t.input_scale == "imported":
            return self.imported[t.layer]
        if t.input_scale == "calibrated":
            assert record is not None and t.spec is not None
            largest = get_format(t.spec.format).input_max
            assert largest is not None
            scale = input_scale(record, self.recipe.input_scale_percentile, largest)
            return max(scale, SMALLEST)
        return None

    def warnings(self, plan: Plan) -> list[str]:
        """What a person should know once the plan is carried out."""
        layers = [t for t in plan.tensors if t.action == "quantize"]
        found = list(self.notes)
        if self.calibration is not None:
            unseen = [t.layer for t in layers if self.record(t.layer) is None]
            if unseen:
                named = ", ".join(unseen[:_NAMED]) + (", …" if len(unseen) > _NAMED else "")
                found.append(
                    f"{len(unseen)} of {len(layers)} layers were never reached in the calibration "
                    f"run and were rounded without statistics: {named}"
                )
        elif any(t.options is not None and t.options.rounding == "calibrated" for t in layers):
            found.append(
                "rounding is 'calibrated', but no calibration was given: rounded without "
                "statistics. Connect or name a calibration, or choose 'auto'."
            )
        if self.recipe.input_scale == "calibrated" and self.calibration is None and layers:
            found.append(
                "input_scale is 'calibrated', but no calibration was given: layers have no input "
                "scales. Connect or name a calibration, or choose 'auto'."
            )
        return found
