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
        self._problems: dict[int, str] = {}
        path = recipe.input_scales
        self.imported: dict[str, float] = {}
        if path is not None:
            names = LayerNames(n.removesuffix(_WEIGHT) for n in model.names if n.endswith(_WEIGHT))
            self.imported, notes = match_scales(read_input_scales(path), names, path)
            self.notes += notes

    def record(self, layer: str) -> Record | None:
        """Statistics of a layer's inputs; None where nothing was seen of it, or NaN or Inf."""
        return self.calibration.record(layer) if self.calibration and self.has(layer) else None

    def has(self, layer: str) -> bool:
        """Whether :meth:`record` has something. A record is read for it once, whoever shares it."""
        return self.problem(layer) == ""

    def problem(self, layer: str) -> str | None:
        """Why a layer's statistics are of no use, or ""; None where it was never reached."""
        shelf = None if self.calibration is None else self.calibration.shelf(layer)
        if shelf is None:
            return None
        if id(shelf) not in self._problems:
            self._problems[id(shelf)] = shelf.load().problem()
        return self._problems[id(shelf)]

    def why_none(self, t: TensorPlan) -> str:
        """Why a layer is rounded without statistics, where a person would expect them."""
        assert t.options is not None
        if t.options.rounding == "nearest":
            return ""
        problem = self.problem(t.layer)
        if problem:
            return f"no statistics: {problem}"
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
        return self.has(layer)

    def _tokens_a_call(self, layer: str) -> float:
        """Mean number of tokens in one call of the model; infinite where it is not known."""
        summary = None if self.calibration is None else self.calibration.summary(layer)
        if self.calibration is None or summary is None or not summary.count:
            return math.inf
        runs = self.calibration.settings.get("runs") or [self.calibration.settings]
        calls = sum(run.get("calls") or 0 for run in runs)
        return summary.count / calls if calls else math.inf

    def _is_few(self, t: TensorPlan) -> bool:
        """Whether what was seen of a layer is too little for how it is to be rounded."""
        assert t.options is not None
        summary = None if self.calibration is None else self.calibration.summary(t.layer)
        if summary is None or t.options.rounding == "nearest" or not self.has(t.layer):
            return False
        return summary.available - summary.set_aside < MIN_TOKENS

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
            unseen = [t.layer for t in layers if self.problem(t.layer) is None]
            spoiled = [t.layer for t in layers if self.problem(t.layer)]
            few = [t.layer for t in layers if self._is_few(t)]
            without = "and were rounded without statistics"
            for those, what in (
                (unseen, f"were never reached in the calibration run {without}"),
                (spoiled, f"have statistics with NaN, Inf or damage (calibrate again) {without}"),
                (few, f"have fewer than {MIN_TOKENS} tokens to fit to (calibrate on more) and were "
                      "not calibrated"),
            ):  # fmt: skip
                if those:
                    found.append(f"{len(those)} of {len(layers)} layers {what}: {_few(those)}")
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
