"""The engine: carries a plan out, from a source to a sink.

Where rounding needs no statistics, a tensor is read, rounded and written a few rows at a time,
small enough to stay in a core's cache, by one worker a core (``streaming.py``). Layers whose inputs
were measured, and learned rounding, take a whole layer at a time (``solving.py``). The output's
header is known from the plan, so everything goes straight to its place in the file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from ..checkpoints import encode_conf
from ..errors import Cancelled, RecipeError
from ..kernels.machine import out_of_memory
from ..layouts import get_format
from .calibration import Calibration
from .model import ModelView
from .outcome import Outcome
from .output import WrittenSink, marker
from .plan import Plan, TensorPlan, make_plan
from .progress import Progress
from .recipe import Recipe
from .report import Report, make_report
from .resume import Journal
from .rows import NonFiniteError, Rows, iter_layers
from .solving import LayerSolver
from .source import OpenSink, Sink, Source
from .statistics import Statistics
from .stored import parts_of
from .streaming import quantize_rows
from .workers import Workers

ProgressCallback = Callable[[Progress], None]
CancelCallback = Callable[[], bool]

_COPY_CHUNK = 4 << 20  # bytes
_TICK = 0.1  # seconds between looks at cancel


def convert(
    source: Source,
    open_sink: OpenSink,
    recipe: Recipe,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
    calibration: Calibration | None = None,
    journal: Journal | None = None,
    decodes: bool = False,
) -> Report:
    """Quantize ``source`` into a sink.

    Args:
        source: what to convert.
        open_sink: called with the output's entries and metadata; its context is left with an
            exception when the run fails, and may be opened again when layers turn out to hold NaN
            or Inf.
        recipe: the settings.
        progress: called several times a second; an exception it raises ends the run.
        cancel: looked at several times a second; True ends the run with :class:`Cancelled`.
        calibration: statistics of the layers' inputs.
        journal: keeps finished layers that took long, so that a cancelled run goes on with them;
            whoever gives it clears it once the result is safe.
        decodes: the model's runtime decodes every weight before its product (ComfyUI does so for
            text encoders): what is reported as executed is that.

    Returns:
        The report. Layers with NaN or Inf are kept as they are and named in it.

    Raises:
        RoundsmithError: statistics of another model.
    """
    began = time.perf_counter()
    model = ModelView(source)
    device = rounding_device(recipe.device)
    statistics = Statistics(model, recipe, calibration)
    bad: dict[str, str] = {}
    warnings: list[str] = []
    while True:
        plan = make_plan(model, recipe, bad, statistics.known)
        with Workers(device) as workers:
            rows = Rows(model, workers, device)
            solver = LayerSolver(rows, recipe, statistics.input_scale, journal, decodes)
            run = _Run(rows, solver, plan, recipe, statistics, progress, cancel)
            try:
                with open_sink(plan.entries, plan.metadata) as sink:
                    run.carry_out(WrittenSink(sink, plan.names, plan.entries))
                    for name, entry in plan.markers.items():
                        sink.write(name, marker(entry))
                break
            except NonFiniteError as found:
                bad.update(run.find_nonfinite(found.layer))
            except RuntimeError as error:
                if device.type == "cpu" or not out_of_memory(error):
                    raise
                warnings.append(f"{device} ran out of memory: rounded on the CPU instead")
                device = torch.device("cpu")
    warnings += [f"{layer}: {reason}" for layer, reason in bad.items()]
    warnings += statistics.warnings(plan)
    if journal is not None:
        warnings += [journal.note] if journal.note else []
        if solver.reused:
            warnings.append(f"{solver.reused} layers were finished in a run before, and reused")
    seconds = time.perf_counter() - began
    return make_report(plan, run.outcomes, warnings, seconds)


def rounding_device(name: str) -> torch.device:
    """The device of a recipe's ``device``. Raises :class:`RecipeError` where it is not usable."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("rounding runs on cpu or cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"device {name!r} is not usable here ({error}); choose auto or cpu"
        ) from error
    return device


class _Run:
    """One attempt at carrying out a plan."""

    def __init__(
        self,
        rows: Rows,
        solver: LayerSolver,
        plan: Plan,
        recipe: Recipe,
        statistics: Statistics,
        progress: ProgressCallback | None,
        cancel: CancelCallback | None,
    ) -> None:
        self.model, self.rows, self.solver = rows.model, rows, solver
        self.plan, self.statistics = plan, statistics
        self.progress, self.cancel = progress, cancel
        rows.tick = self._tick_sometimes
        self.outcomes: dict[str, Outcome] = {}
        self._gains: list[float] = []
        self.total = sum(t.bytes_before for t in plan.tensors)
        self.biases = self._corrected_biases() if recipe.bias_correction else {}
        self._position = ("", 0, 0)
        self._ticked = 0.0

    def carry_out(self, sink: Sink) -> None:
        """Write every tensor of the plan to ``sink``. Raises :class:`NonFiniteError`."""
        done = 0
        written = set(self.biases.values())
        for index, t in enumerate(self.plan.tensors, 1):
            self._position = (t.layer, index, done)
            self._tick()
            if t.action == "quantize":
                self._quantize(t, sink)
            elif t.action != "remove" and t.name not in written:
                self._copy(t, sink)
            self.model.release()
            done += t.bytes_before
        self._position = (self._position[0], self._position[1], done)
        self._tick()

    def find_nonfinite(self, first: str) -> dict[str, str]:
        """All layers from ``first`` on that were to be quantized and hold NaN or Inf, with the
        reason.
        """
        found: dict[str, str] = {}
        for t in iter_layers(self.plan.tensors, first):
            count = self.rows.count_nonfinite(t)
            self.model.release()
            if count:
                found[t.layer] = f"{count} weights are NaN or Inf; kept as it is"
        return found

    def _corrected_biases(self) -> dict[str, str]:
        """Biases that are written with their layer, by layer."""
        copied = {t.name for t in self.plan.tensors if t.action == "copy"}
        layers = [t.layer for t in self.plan.tensors if t.action == "quantize"]
        return {
            layer: f"{layer}.bias"
            for layer in layers
            if f"{layer}.bias" in copied and self.statistics.has(layer)
        }

    def _tick(self) -> None:
        if self.cancel is not None and self.cancel():
            raise Cancelled("cancelled; nothing was written under the destination's name")
        if self.progress is not None:
            layer, index, done = self._position
            gain = sum(self._gains) / len(self._gains) if self._gains else None
            count = len(self.plan.tensors)
            self.progress(Progress(layer, index, count, done, self.total, gain))

    def _tick_sometimes(self) -> None:
        now = time.monotonic()
        if now - self._ticked >= _TICK:
            self._ticked = now
            self._tick()

    def _quantize(self, t: TensorPlan, sink: Sink) -> None:
        assert t.options is not None and t.conf is not None
        record = self.statistics.record(t.layer)
        if record is not None or t.options.rounding == "learned":
            bias = self.biases.get(t.layer)
            outcome, _ = self.solver.quantize(t, record, bias, sink)
        else:
            outcome = self._stream(t, sink)
        if f"{t.layer}.comfy_quant" in t.entries:
            sink.write(f"{t.layer}.comfy_quant", encode_conf(t.conf))
        self.outcomes[t.layer] = outcome
        if outcome.gain is not None and math.isfinite(outcome.gain):
            self._gains.append(outcome.gain)

    def _stream(self, t: TensorPlan, sink: Sink) -> Outcome:
        """Round without statistics: the search where it is asked for, or pays."""
        assert t.options is not None and t.spec is not None
        search, note = t.options.scale_search, self.statistics.why_none(t)
        if search is None:
            wanted = t.options.rounding != "nearest"
            search = wanted and get_format(t.spec.format).search_pays
        outcome, scales = quantize_rows(self.rows, t, search, sink, note)
        scale = self.statistics.input_scale(t, None, scales)
        if scale is not None:
            sink.write(f"{t.layer}.input_scale", torch.tensor(scale))
        return replace(outcome, input_scale=scale)

    def _copy(self, t: TensorPlan, sink: Sink) -> None:
        stored = self.model.stored_layer(t.name)
        if stored is not None:
            assert t.conf is not None
            parts = stored.format.in_form(parts_of(self.model.source, stored), stored.conf)
            for suffix, part in parts.items():
                sink.write(f"{t.layer}.{suffix}", part)
            if f"{t.layer}.comfy_quant" in t.entries:
                sink.write(f"{t.layer}.comfy_quant", encode_conf(t.conf))
            return
        size = self.model.described(t.name).nbytes
        for first in range(0, size, _COPY_CHUNK):
            data = self.model.source.read_bytes(t.name, first, min(first + _COPY_CHUNK, size))
            sink.write_bytes(t.name, first, data)
            if first:
                self._tick()
