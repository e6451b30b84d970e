"""Where an input scale of a layer comes from: one class a mode, all with ``find``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from ...errors import CheckpointError, RecipeError
from ..calibration import Calibration
from ..matching import search_pattern
from ..model import ModelView
from ..stored import StoredLayer, parts_of
from .calibrate_options import CalibrateOptions
from .devices import usable_device
from .estimates import lora_inputs, random_inputs, range_of, read_directions
from .input_scales import (
    LARGEST,
    SMALLEST,
    check_scale,
    input_scale,
    match_scales,
    read_input_scales,
)
from .names import LayerNames
from .statistics import fitted


class Found(NamedTuple):
    """A layer's scale with the magnitudes it was made of; or the reason why there is none."""

    scale: float | None
    reach: float | None = None
    largest: float | None = None
    reason: str = ""


class ScaleSource(Protocol):
    """Finds input scales; ``warnings`` are complete once it is made."""

    warnings: list[str]

    def find(self, layer: str, stored: StoredLayer) -> Found: ...


def source_of(
    options: CalibrateOptions, model: ModelView, calibration: Calibration | str | Path | None
) -> ScaleSource:
    """The source that ``options`` ask for. Raises RecipeError without the data it needs."""
    if (options.mode == "measured") != (calibration is not None):
        raise RecipeError(
            "mode measured and a calibration go together: capture one "
            "(roundsmith.capture, or Calibrate in ComfyUI), or choose another mode"
        )
    source: ScaleSource
    if options.mode == "measured":
        assert calibration is not None
        if not isinstance(calibration, Calibration):
            calibration = Calibration.load(calibration)
        source = _Measured(calibration, model, options)
    elif options.mode == "random":
        source = _Estimated(model, options)
    elif options.mode == "lora":
        source = _FromLora(model, options)
    elif options.mode == "import":
        return _Selected(_Imported(model, options), options, everything=True)
    else:
        source = _Fixed(model, options)
    return _Selected(source, options)


class _Selected:
    """Leaves out layers that are not asked for, or whose inputs ComfyUI scales at run time."""

    def __init__(
        self, inner: ScaleSource, options: CalibrateOptions, everything: bool = False
    ) -> None:
        self.inner, self.pattern, self.everything = inner, options.layers, everything
        self.warnings = inner.warnings

    def find(self, layer: str, stored: StoredLayer) -> Found:
        if self.pattern is not None and not search_pattern(self.pattern, layer):
            return Found(None, reason="not selected")
        if not self.everything and stored.format.input_max is None:
            return Found(None, reason=f"{stored.format.id}: inputs are scaled at run time")
        found = self.inner.find(layer, stored)
        if found.scale is None or SMALLEST <= found.scale <= LARGEST:
            return found
        return found._replace(
            scale=None, reason=f"inputs up to {found.reach:g} give no usable scale"
        )


class _Measured:
    def __init__(self, calibration: Calibration, model: ModelView, options: CalibrateOptions):
        self.calibration, self.warnings = fitted(calibration, model)
        self.percentile = options.percentile

    def find(self, layer: str, stored: StoredLayer) -> Found:
        record = self.calibration.record(layer)
        if record is None:
            return Found(None, reason="never reached in the calibration")
        if record.problem():
            return Found(None, reason=record.problem())
        assert stored.format.input_max is not None
        scale = input_scale(record, self.percentile, stored.format.input_max)
        return Found(scale, record.percentile(self.percentile), float(record.absmax.max()))


class _Estimated:
    def __init__(self, model: ModelView, options: CalibrateOptions):
        self.model, self.options = model, options
        self.device = usable_device(options.device)
        self.warnings = ["input scales are estimates: no measured activations"]

    def find(self, layer: str, stored: StoredLayer) -> Found:
        features = self.model.shape(f"{layer}.weight")[1]
        inputs = random_inputs(
            features, self.options.samples, self.options.seed, layer, self.device
        )
        return self._found(inputs, stored)

    def _found(self, inputs: Tensor, stored: StoredLayer) -> Found:
        assert stored.format.input_max is not None
        reach, largest = range_of(inputs, self.options.percentile)
        return Found(reach / stored.format.input_max, reach, largest)


class _FromLora(_Estimated):
    def __init__(self, model: ModelView, options: CalibrateOptions):
        super().__init__(model, options)
        self.directions = read_directions(options.loras, LayerNames(model.stored))

    def find(self, layer: str, stored: StoredLayer) -> Found:
        directions = self.directions.get(layer)
        if directions is None:
            return Found(None, reason="no LoRA on it")
        features = self.model.shape(f"{layer}.weight")[1]
        if directions.shape[1] != features:
            raise CheckpointError(
                f"{', '.join(map(str, self.options.loras))}: the LoRA of {layer!r} has "
                f"{directions.shape[1]} inputs, the layer {features}: it belongs to another model"
            )
        inputs = lora_inputs(
            directions, self.options.samples, self.options.seed, layer, self.device
        )
        return self._found(inputs, stored)


class _Imported:
    def __init__(self, model: ModelView, options: CalibrateOptions):
        assert options.scales is not None
        where = options.scales if isinstance(options.scales, Path) else "the given scales"
        given = options.scales
        if isinstance(given, Path):
            given = read_input_scales(given)
        for key, value in given.items():
            check_scale(value, str(where), key)
        self.scales, self.warnings = match_scales(given, LayerNames(model.stored), where)

    def find(self, layer: str, stored: StoredLayer) -> Found:
        if layer not in self.scales:
            return Found(None, reason="not in the imported file")
        return Found(self.scales[layer])


class _Fixed:
    """A constant, or the weight's scale, as T5-XXL and Mistral files have it."""

    def __init__(self, model: ModelView, options: CalibrateOptions):
        self.model, self.of_weight = model, options.mode == "weight"
        self.constant = options.constant
        self.warnings: list[str] = []

    def find(self, layer: str, stored: StoredLayer) -> Found:
        if not self.of_weight:
            return Found(self.constant)
        scale = parts_of(self.model.source, stored).get("weight_scale")
        if scale is None or scale.numel() != 1 or not SMALLEST <= float(scale) <= LARGEST:
            return Found(None, reason="its weight scale is no input scale")
        return Found(float(scale))
