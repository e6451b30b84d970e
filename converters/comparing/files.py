"""Two checkpoints, one layer in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints import Checkpoint
from ...errors import Cancelled, RoundsmithError
from ...layouts import executed_linear
from ..calibration import Calibration
from ..corrections.devices import usable_device
from ..corrections.names import LayerNames
from ..corrections.statistics import fitted
from ..model import ModelView
from ..progress import Progress
from ..stored import parts_of
from .comparison import Comparison, LayerScore, listed, show, worst_first
from .layers import described, difference, executed_snr, score_weights
from .scores import Power, mean

_AT_ONCE = 2**22  # values of a tensor that is no linear layer's weight
_WEIGHT = ".weight"

ProgressCallback = Callable[[Progress], None]
CancelCallback = Callable[[], bool]


def compare_files(
    reference: str | Path,
    quantized: str | Path,
    calibration: Calibration | str | Path | None = None,
    threshold: float | None = None,
    *,
    device: str = "auto",
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> Comparison:
    """Score each layer of a checkpoint beside that of another; either may be quantized.

    Without a calibration the layers' weights are compared. That says little of outputs: codes
    rounded against activations are farther from the weights and nearer in what they compute. With
    one, outputs are, on tokens that rounding against the same calibration sets aside: with exact
    activations, and as ComfyUI executes the layer on ``device``.

    Args:
        reference: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        quantized: the other one.
        calibration: statistics of the reference's inputs, or their file.
        threshold: dB the mean SNR over the layers that lost something must reach.
        device: where layers run: auto, cpu, cuda, ...
        progress: called for every tensor; an exception it raises ends the run.
        cancel: asked for every tensor; True ends the run.

    Raises:
        QualityError: below ``threshold``; it carries the comparison.
        CheckpointError, FormatError: a file that cannot be read.
        RoundsmithError: files without a layer in common; statistics of another model.
        Cancelled: ``cancel`` said so.
    """
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = Calibration.load(calibration)
    where = usable_device(device)
    with Checkpoint.open(reference) as first, Checkpoint.open(quantized) as second:
        work = _Pair(ModelView(first), ModelView(second), where)
        if not work.layers:
            raise RoundsmithError(
                f"{reference} and {quantized} have no linear layer in common: are they the same "
                "model?"
            )
        notes: list[str] = []
        if calibration is not None:
            calibration, notes = fitted(calibration, work.first)
        scores: list[LayerScore] = []
        others: list[tuple[str, float]] = []
        for name in _watched(work, progress, cancel):
            if name in work.layers:
                scores.append(work.score(name, calibration))
            elif (snr := work.difference(name)) != math.inf:
                others.append((name, snr))
    comparison = _comparison(scores, str(where), calibration is not None)
    if others:
        worst = min(others, key=lambda item: item[1])
        notes.append(f"{len(others)} other tensors differ; most does {worst[0]}: {show(worst[1])}")
    unreached = [x.name for x in scores if calibration is not None and not x.tokens]
    if unreached:
        notes.append(f"scored without activations, which there are none of: {listed(unreached)}")
    return _with(comparison, work, notes).require(threshold)


def _comparison(scores: list[LayerScore], device: str, measured: bool) -> Comparison:
    executed = mean(x.executed for x in scores)
    measured = measured and executed is not None
    snr = executed if measured else mean(x.weight for x in scores)
    assert snr is not None
    lost = sum(x.score != math.inf for x in scores)
    kind = f"layers' outputs as executed on {device}" if measured else "layers' weights"
    what = f"{kind} (mean of the {lost} of {len(scores)} layers that differ)"
    return Comparison(snr, what, worst_first(scores), device=device)


def _with(comparison: Comparison, work: _Pair, notes: list[str]) -> Comparison:
    if comparison.exact is None:
        notes = [*notes, "weights only: give a calibration to score what the layers compute"]
    return replace(
        comparison,
        only_reference=tuple(work.only_first),
        only_quantized=tuple(work.only_second),
        notes=tuple(notes),
    )


class _Pair:
    """Two checkpoints as models, their tensors matched by name.

    Attributes:
        first, second: the models.
        layers: of the first, the weights of layers both have in the same shape: their names in the
            second.
        rest: the same for all other tensors.
        only_first, only_second: layers without a partner.
    """

    def __init__(self, first: ModelView, second: ModelView, device: torch.device) -> None:
        self.first, self.second, self.device = first, second, device
        names = LayerNames(_layers(second))
        self.layers: dict[str, str] = {}
        for layer in _layers(first):
            found = names.find(layer)
            key = layer + _WEIGHT
            if found is not None and second.shape(found + _WEIGHT) == first.shape(key):
                self.layers[key] = found + _WEIGHT
        self.only_first = [x for x in _layers(first) if x + _WEIGHT not in self.layers]
        taken = {name.removesuffix(_WEIGHT) for name in self.layers.values()}
        self.only_second = [x for x in _layers(second) if x not in taken]
        self.rest = self._match_rest()

    def _match_rest(self) -> dict[str, str]:
        layers = {a.removesuffix(_WEIGHT): b.removesuffix(_WEIGHT) for a, b in self.layers.items()}
        rest = {}
        for name in self.first.names:
            if name in self.layers or not self.first.is_weight(name):
                continue
            owner, _, suffix = name.rpartition(".")
            other = f"{layers.get(owner, owner)}.{suffix}" if owner else name
            known = other in self.second.source.tensors and self.second.is_weight(other)
            if known and self.second.shape(other) == self.first.shape(name):
                rest[name] = other
        return rest

    def score(self, name: str, calibration: Calibration | None) -> LayerScore:
        """The score of the layer whose weight is ``name`` in the first model."""
        other, shape = self.layers[name], self.first.shape(name)
        record = None if calibration is None else calibration.record(name)
        x = None
        if record is not None and len(record.tokens):
            held = record.tokens[: record.held_count or len(record.tokens)]
            x = held.to(self.device, torch.float32)
        bias = [_bias(view, key) for view, key in ((self.first, name), (self.second, other))]
        scores = score_weights(
            lambda start, stop: self.first.read_rows(name, start, stop),
            lambda start, stop: self.second.read_rows(other, start, stop),
            (shape[0], shape[1]),
            x,
            difference(*bias),
        )
        executed = None
        if x is not None:
            expected = _executed(self.first, name, x, bias[0])
            got = _executed(self.second, other, x, bias[1])
            executed = executed_snr(expected, got, scores.signal)
        self.first.release()
        self.second.release()
        return LayerScore(
            name.removesuffix(_WEIGHT),
            (shape[0], shape[1]),
            _stored_as(self.second, other),
            scores.weight,
            scores.exact,
            executed,
            0 if x is None else len(x),
        )

    def difference(self, name: str) -> float:
        """SNR in dB of a tensor that is no linear layer's weight; infinite without a difference."""
        other, power = self.rest[name], Power()
        shape = self.first.shape(name)
        if not shape:
            power.add(self.first.source.read(name), self.second.source.read(other))
            return power.snr
        step = max(_AT_ONCE // max(math.prod(shape[1:]), 1), 1)
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            power.add(
                self.first.read_rows(name, start, stop), self.second.read_rows(other, start, stop)
            )
        return power.snr


def _layers(view: ModelView) -> list[str]:
    """Layers with a two-dimensional weight, in file order."""
    return [
        name.removesuffix(_WEIGHT)
        for name in view.names
        if name.endswith(_WEIGHT) and len(view.shape(name)) == 2 and view.is_weight(name)
    ]


def _bias(view: ModelView, name: str) -> Tensor | None:
    bias = name.removesuffix("weight") + "bias"
    return view.source.read(bias) if bias in view.source.tensors else None


def _executed(view: ModelView, name: str, x: Tensor, bias: Tensor | None) -> Tensor:
    """What ComfyUI's linear layer computes of ``x``: in float32 on a CPU, in bfloat16 on a GPU."""
    dtype = torch.float32 if x.device.type == "cpu" else torch.bfloat16
    stored = view.stored_layer(name)
    if stored is None:
        w = view.read_rows(name, 0, view.shape(name)[0])
        y = torch.nn.functional.linear(x.to(dtype), w.to(x.device, dtype))
    else:
        parts = {s: t.to(x.device) for s, t in parts_of(view.source, stored).items()}
        scale = parts.get("input_scale")
        y = executed_linear(
            stored.format,
            stored.format.read(parts, stored.conf, dtype=dtype),
            x.to(dtype),
            None if scale is None or scale.numel() != 1 else scale.reshape(()).float(),
            bool(stored.conf.get("full_precision_matrix_mult", False)),
        )
    return y if bias is None else y + bias.to(y.device, y.dtype)


def _stored_as(view: ModelView, name: str) -> str:
    stored = view.stored_layer(name)
    if stored is None:
        return str(view.described(name).dtype).removeprefix("torch.")
    return described(stored.conf)


def _watched(
    work: _Pair, progress: ProgressCallback | None, cancel: CancelCallback | None
) -> Iterator[str]:
    names = [name for name in work.first.names if name in work.layers or name in work.rest]
    sizes = [work.first.nbytes(name) for name in names]
    done = 0
    for index, (name, size) in enumerate(zip(names, sizes, strict=True), 1):
        if cancel is not None and cancel():
            raise Cancelled("stopped; a comparison writes nothing")
        if progress is not None:
            progress(Progress(name, index, len(names), done, sum(sizes)))
        yield name
        done += size
