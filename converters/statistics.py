"""What is known of the layers' inputs during a conversion: measured, or imported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..layouts import get_format
from .calibration import Calibration, Fingerprint, Record
from .corrections import input_scale, read_input_scales
from .corrections.input_scales import SMALLEST, match_scales
from .corrections.names import LayerNames
from .model import ModelView
from .plan import Plan, TensorPlan
from .recipe import Recipe
from .rounding import MIN_TOKENS

_WEIGHT = ".weight"
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
        CheckpointError: a file of input scales that cannot be read, or is of another model.
    """

    def __init__(self, model: ModelView, recipe: Recipe, calibration: Calibration | None) -> None:
        self.recipe, self.calibration = recipe, calibration
        self.notes: list[str] = []
        if calibration is not None:
            self.notes += [*calibration.check(Fingerprint.of_view(model)), *calibration.notes]
        self.spoiled: dict[str, str] = {}
        """Why a layer's statistics are of no use: "", or what is wrong with them."""
        path = recipe.input_scales
        self.imported: dict[str, float] = {}
        if path is not None:
            names = LayerNames(n.removesuffix(_WEIGHT) for n in model.names if n.endswith(_WEIGHT))
            self.imported, notes = match_scales(read_input_scales(path), names, path)
            self.notes += notes

    def record(self, layer: str) -> Record | None:
        """Statistics of a layer's inputs; None where nothing was seen of it, or NaN or Inf."""
        if self.calibration is None:
            return None
        record = self.calibration.record(layer)
        if record is None:
            return None
        if layer not in self.spoiled:
            self.spoiled[layer] = record.problem()
        return None if self.spoiled[layer] else record

    def why_none(self, t: TensorPlan) -> str:
        """Why a layer is rounded without statistics, where a person would expect them."""
        assert t.options is not None
        if t.options.rounding == "nearest":
            return ""
        if self.spoiled.get(t.layer):
            return f"no statistics: {self.spoiled[t.layer]}"
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

    def _is_few(self, layer: str) -> bool:
        """Whether what was seen of a layer is too little to round against."""
        record = self.record(layer)
        return record is not None and record.summary.available - record.held_count < MIN_TOKENS

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
            return scale if scale >= SMALLEST else 1.0  # it saw nothing but zeros
        return None

    def warnings(self, plan: Plan) -> list[str]:
        """What a person should know once the plan is carried out."""
        layers = [t for t in plan.tensors if t.action == "quantize"]
        found = list(self.notes)
        if self.calibration is not None:
            without = [t.layer for t in layers if self.record(t.layer) is None]
            spoiled = [layer for layer in without if self.spoiled.get(layer)]
            unseen = [layer for layer in without if layer not in spoiled]
            few = [layer for t in layers if self._is_few(layer := t.layer)]
            for those, what in (
                (unseen, "were never reached in the calibration run"),
                (spoiled, "have statistics that hold NaN or Inf (calibrate again)"),
                (few, f"saw fewer than {MIN_TOKENS} tokens (calibrate on more)"),
            ):
                if those:
                    found.append(
                        f"{len(those)} of {len(layers)} layers {what} and were rounded without "
                        f"statistics: {_few(those)}"
                    )
        elif any(t.options is not None and t.options.rounding == "calibrated" for t in layers):
            found.append(
                "rounding is 'calibrated', but no calibration was given: rounded without "
                "statistics. Connect or name a calibration, or choose 'auto'."
            )
        if self.imported:
            missing = [t.layer for t in layers if _takes_scale(t) and t.layer not in self.imported]
            if missing:
                found.append(
                    f"{self.recipe.input_scales} has no input scale of {len(missing)} layers that "
                    f"take one: {_few(missing)}"
                )
        if self.recipe.input_scale == "calibrated" and self.calibration is None and layers:
            found.append(
                "input_scale is 'calibrated', but no calibration was given: layers have no input "
                "scales. Connect or name a calibration, or choose 'auto'."
            )
        return found


def _takes_scale(t: TensorPlan) -> bool:
    assert t.spec is not None
    return get_format(t.spec.format).input_max is not None


def _few(layers: Sequence[str]) -> str:
    """The first of some layers, for a warning."""
    return ", ".join(layers[:_NAMED]) + (", …" if len(layers) > _NAMED else "")
