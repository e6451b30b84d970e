"""Rounding that sees a whole layer: with statistics of its inputs, or learned.

One layer is in memory at a time. What came of it is judged on tokens that nothing was fitted to,
with exact activations and as this device runs the product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import FormatError
from ..kernels.machine import out_of_memory
from ..layouts import Format, Spec, executed_linear, get_format
from ..layouts.codec import decode, with_peak
from ..layouts.geometries import Geometry
from ..layouts.grids import CodebookGrid, Grid
from .outcome import Outcome, decibel
from .plan import TensorPlan
from .recipe import Recipe
from .resume import Finished, Journal
from .rounding import (
    MIN_TOKENS,
    Activations,
    Solution,
    calibrated,
    fit_codebook,
    learned,
    nearest,
    searched,
)
from .rows import Rows
from .source import Sink

if TYPE_CHECKING:
    from .calibration import Record

_EXECUTED_TOKENS = 256
_SHARED = {"calibrated", "learned", "seed", "input_scale_percentile"}
InputScale = Callable[[TensorPlan, "Record | None", Mapping[str, Tensor]], float | None]


class LayerSolver:
    """Solves layers one after the other.

    Args:
        rows: reads the weights, and says where they are rounded.
        recipe: the settings that hold for all layers.
        input_scale: the fixed input scale of a layer, from its plan, statistics and parts.
        journal: finished layers of an earlier run, or None.
        decodes: the runtime decodes every weight before its product, as for text encoders.
    """

    def __init__(
        self,
        rows: Rows,
        recipe: Recipe,
        input_scale: InputScale,
        journal: Journal | None,
        decodes: bool = False,
    ) -> None:
        self.rows, self.recipe, self.journal, self.decodes = rows, recipe, journal, decodes
        self.input_scale = input_scale
        self.reused = 0
        """Layers that were finished in a run before."""

    def quantize(
        self, t: TensorPlan, record: Record | None, bias: str | None, sink: Sink
    ) -> tuple[Outcome, dict[str, Tensor]]:
        """Round one layer and write it.

        Args:
            t: the layer's plan.
            record: statistics of its inputs, if there are any.
            bias: the name of its bias, where that is corrected for the mean error; written too.
            sink: gets codes, scales and bias.

        Returns:
            What it came to, and the parts that were written, by suffix.

        Raises:
            NonFiniteError: the layer holds NaN or Inf.
        """
        w = self.rows.read_whole(t)
        old_bias = None if bias is None else self.rows.model.source.read(bias)
        began = time.perf_counter()
        key = ""
        found = None
        if self.journal is not None:
            known = _fingerprint(w, record, old_bias)
            key = self.journal.key(self._settings(t, record), known)
            found = self.journal.find(key)
        if found is not None and not _fits(found, t):
            found = None
        if found is None:
            with self.rows.workers.idle():
                found = self._solve_somewhere(t, w, record, old_bias)
            found.facts["seconds"] = time.perf_counter() - began
            if self.journal is not None:
                self.journal.keep(key, found)
        elif self.journal is not None and not self.journal.made(key):
            self.reused += 1
        for suffix, part in found.parts.items():
            sink.write(f"{t.layer}.{suffix}", part)
        return Outcome(**found.facts), found.parts

    def _settings(self, t: TensorPlan, record: Record | None) -> str:
        assert t.options is not None
        shared = self.recipe.model_dump_json(include=_SHARED)
        mine = f"{t.spec} {t.input_scale} {t.options.rounding} {t.options.scale_search}"
        scale = self.input_scale(t, record, {}) if t.input_scale == "imported" else ""
        tokens = "" if record is None else record.summary
        return f"{mine} {scale} {tokens} {self.rows.device.type} {self.decodes} {shared}"

    def _solve_somewhere(
        self, t: TensorPlan, w: Tensor, record: Record | None, bias: Tensor | None
    ) -> Finished:
        device = self.rows.device
        if device.type == "cpu":
            return self._solve(t, w, record, bias, device)
        try:
            return self._solve(t, w, record, bias, device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
        finished = self._solve(t, w, record, bias, torch.device("cpu"))
        note = f"{device} ran out of memory: rounded on the CPU"
        finished.facts["note"] = "; ".join(filter(None, (finished.facts["note"], note)))
        return finished

    def _solve(
        self,
        t: TensorPlan,
        original: Tensor,
        record: Record | None,
        bias: Tensor | None,
        device: torch.device,
    ) -> Finished:
        assert t.spec is not None
        spec, fmt = t.spec, get_format(t.spec.format)
        original = original.to(device)
        w = fmt.transform(original, spec)
        activations = None if record is None else _activations(record, fmt, spec, device)
        grid = self._grid(fmt, spec, w, activations)
        solution = self._round(t, fmt, grid, w, activations)
        lost = w - decode(solution.codes, grid, solution.scales)
        padded = fmt.padded_shape((t.shape[0], t.shape[1]))
        if fmt.stores_peak(spec):
            scales = with_peak(solution.codes, grid, solution.scales)
            solution = solution._replace(scales=scales)
        parts = {
            "weight": fmt.pack_codes(solution.codes, spec),
            **fmt.pack_scales(solution.scales, spec, padded),
            **fmt.pack_grid(grid),
        }
        scale = self.input_scale(t, record, parts)
        if scale is not None:
            parts["input_scale"] = torch.tensor(scale)
        outcome = Outcome(
            solution.method,
            solution.note,
            decibel(float(w.square().sum()), float(lost.square().sum())),
            expected_gain=solution.expected_gain,
            input_scale=scale,
        )
        if record is not None and activations is not None:
            peak = float(record.absmax.max())
            outcome = replace(outcome, tokens=activations.count, input_max=peak)
            shift = None
            if bias is not None and activations.count >= MIN_TOKENS:
                bias = bias.to(device)
                means = [
                    fmt.transform_inputs(mean.to(device)[None], spec)
                    for mean in (record.fitted_mean(), record.mean)
                ]
                parts["bias"], shift = _corrected(bias, lost, means[0], activations.held)
                if shift is not None:  # it helps tokens it was not fitted to: now with all of them
                    parts["bias"] = _shifted(bias, lost, means[1])
            elif bias is not None:
                parts["bias"] = bias
            outcome = self._judge(t, outcome, original, w, lost, shift, activations, record, parts)
        elif bias is not None:
            parts["bias"] = bias
        return Finished({name: part.cpu() for name, part in parts.items()}, asdict(outcome))

    def _grid(self, fmt: Format, spec: Spec, w: Tensor, activations: Activations | None) -> Grid:
        """The grid to round to: the format's, or one fitted to the layer."""
        grid = fmt.grid_for(spec)
        if not fmt.own_grid(spec):
            return grid
        assert isinstance(grid, CodebookGrid)
        geometry = fmt.geometry(spec)
        importance = None if activations is None else activations.moment.diagonal()
        fitted = fit_codebook(w, grid, geometry, importance, self.rows.tick)
        if fitted is grid or activations is None:
            return fitted
        # Whatever else is promised is promised against nearest codes of the format's own grid.
        lost = [_plain_error(w, g, geometry, activations.held) for g in (grid, fitted)]
        return fitted if lost[1] <= lost[0] else grid

    def _round(
        self, t: TensorPlan, fmt: Format, grid: Grid, w: Tensor, activations: Activations | None
    ) -> Solution:
        assert t.options is not None and t.spec is not None
        options, recipe, poll = t.options, self.recipe, self.rows.tick
        geometry = fmt.geometry(t.spec)
        absmax = w.abs().amax() if geometry.needs_tensor_absmax else None
        if options.rounding == "learned":
            return learned(
                w, grid, geometry, activations, absmax,
                options=recipe.learned, seed=recipe.seed, poll=poll,
            )  # fmt: skip
        assert activations is not None
        if options.rounding != "nearest":
            search = options.scale_search is not False
            return calibrated(
                w, grid, geometry, activations, absmax,
                scale_search=search, options=recipe.calibrated, poll=poll,
            )  # fmt: skip
        if not options.scale_search:
            return Solution(*nearest(w.clone(), grid, geometry, absmax), "nearest")
        return searched(w, grid, geometry, activations, absmax, poll=poll)

    def _judge(
        self,
        t: TensorPlan,
        outcome: Outcome,
        original: Tensor,
        w: Tensor,
        lost: Tensor,
        shift: Tensor | None,
        activations: Activations,
        record: Record,
        parts: dict[str, Tensor],
    ) -> Outcome:
        """Add the SNRs on the tokens set aside."""
        assert t.spec is not None and t.conf is not None
        spec, fmt, held = t.spec, get_format(t.spec.format), activations.held
        if not len(held):
            return outcome
        geometry = fmt.geometry(spec)
        signal = float((held @ w.T).square().sum())
        error = held @ lost.T
        plain = _plain_error(w, fmt.grid_for(spec), geometry, held)
        if shift is not None:
            error = error - shift
        outcome = replace(
            outcome,
            output_snr=decibel(signal, float(error.square().sum())),
            nearest_snr=decibel(signal, plain),
        )
        if w.device.type != self.rows.device.type:  # no room there: not as this device runs it
            return outcome
        dtype = torch.bfloat16 if w.is_cuda else torch.float32
        x = record.split().held[:_EXECUTED_TOKENS].to(w.device)
        try:
            here = {name: part.to(w.device) for name, part in parts.items()}
            weight = fmt.read(here, t.conf, (t.shape[0], t.shape[1]), dtype)
        except FormatError:  # the installed comfy-kitchen cannot run it; it says so when loading
            return outcome
        expected = x @ original.T
        scale = outcome.input_scale
        got = executed_linear(
            fmt,
            weight,
            x.to(dtype),
            None if scale is None else torch.tensor(scale, device=w.device),
            self.decodes or spec.full_precision_matrix_mult,
        ).float()
        if shift is not None:
            got = got + shift[: t.shape[0]]
        noise = float((expected - got).square().sum())
        return replace(outcome, executed_snr=decibel(float(expected.square().sum()), noise))


def _fits(found: Finished, t: TensorPlan) -> bool:
    """Whether a layer found in the journal has the tensors that are to be written."""
    parts = {f"{t.layer}.{suffix}": part for suffix, part in found.parts.items()}
    return all(
        name in parts and (parts[name].dtype, tuple(parts[name].shape)) == (entry[0], entry[1])
        for name, entry in t.entries.items()
        if not name.endswith(".comfy_quant")
    )


def _activations(record: Record, fmt: Format, spec: Spec, device: torch.device) -> Activations:
    """Statistics in the domain that is rounded."""
    raw = record.split()
    moment = fmt.transform_inputs(raw.moment.to(device, torch.float32), spec)
    moment = fmt.transform_inputs(moment.T.contiguous(), spec)
    held = fmt.transform_inputs(raw.held.to(device, torch.float32), spec)
    return Activations(moment, raw.count, held, raw.apart)


def _plain_error(w: Tensor, grid: Grid, geometry: Geometry, held: Tensor) -> float:
    """Squared error of the outputs of ``held [h, N]`` under absmax scales and nearest codes."""
    codes, scales = nearest(w.clone(), grid, geometry)
    return float((held @ (w - decode(codes, grid, scales)).T).square().sum())


def _corrected(
    bias: Tensor, lost: Tensor, mean: Tensor, held: Tensor
) -> tuple[Tensor, Tensor | None]:
    """A bias with what the layer's mean output loses put back, in its own dtype.

    Args:
        bias: ``[M]``.
        lost: float32 ``[Mp, Np]``, W − Ŵ.
        mean: float32 ``[1, Np]``, the mean input.
        held: float32 ``[h, Np]``, tokens that decide.

    Returns:
        The bias and the shift ``[Mp]`` it makes; the old one and None where the tokens do not gain,
        as where rounding the sum to the bias's dtype costs more than is put back.
    """
    new = _shifted(bias, lost, mean)
    shift = torch.nn.functional.pad(new.float() - bias.float(), (0, len(lost) - len(bias)))
    error = held @ lost.T
    if float((error - shift).square().sum()) < float(error.square().sum()):
        return new, shift
    return bias, None


def _shifted(bias: Tensor, lost: Tensor, mean: Tensor) -> Tensor:
    return (bias.float() + (mean @ lost.T)[0][: len(bias)]).to(bias.dtype)


def _fingerprint(w: Tensor, record: Record | None, bias: Tensor | None) -> list[Tensor]:
    known = [w] if bias is None else [w, bias]
    if record is not None:
        known += [record.mean, record.absmax, record.histogram, record.tokens]
        known += [] if record.moment is None else [record.moment]
    return known
