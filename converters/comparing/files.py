"""Two checkpoints, one layer in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints import Checkpoint
from ...errors import Cancelled, RoundsmithError
from ..calibration import Calibration
from ..corrections.devices import usable_device
from ..corrections.names import LayerNames
from ..corrections.statistics import fitted
from ..model import ModelView
from ..progress import Progress
from ..running import decodes_weights, run_layer
from .comparison import Comparison, LayerScore, listed, show, worst_first
from .layers import described, difference, executed_snr, score_weights
from .scores import Power, is_broken, mean

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
        threshold: dB the mean SNR over the layers that lost something must reach; layers of the
            reference that the other file has not, and NaN, fail it too.
        device: where layers run: auto, cpu, cuda, ...
        progress: called for every tensor; an exception it raises ends the run.
        cancel: asked for every tensor; True ends the run.

    Raises:
        QualityError: ``threshold`` is not reached; it carries the comparison.
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
        broken: list[str] = []
        for name in _watched(work, progress, cancel):
            if name in work.layers:
                scores.append(work.score(name, calibration))
                found = scores[-1]
                numbers = (found.weight, found.exact, found.executed)
                if found.name not in work.spoiled and any(map(is_broken, numbers)):
                    broken.append(found.name)
            elif (power := work.difference(name)).snr != math.inf:
                others.append((name, power.snr))
                if math.isfinite(power.signal) and not math.isfinite(power.noise):
                    broken.append(name)
    sound = [x for x in scores if x.name not in work.spoiled]
    comparison = _comparison(sound or scores, str(where), calibration is not None)
    if work.spoiled:
        names = listed(sorted(work.spoiled))
        notes.append(f"not scored, NaN or Inf in the reference itself: {names}")
    faults = _faults(work.only_first, broken)
    if others:
        worst = min(others, key=lambda item: item[1])
        notes.append(f"{len(others)} other tensors differ; most does {worst[0]}: {show(worst[1])}")
    unreached = [x.name for x in scores if calibration is not None and not x.tokens]
    if unreached:
        notes.append(f"scored without activations, which there are none of: {listed(unreached)}")
    return _with(comparison, work, notes, faults).require(threshold)


def _comparison(scores: list[LayerScore], device: str, given: bool) -> Comparison:
    executed = mean(x.executed for x in scores)
    measured = given and executed is not None
    snr = executed if measured else mean(x.weight for x in scores)
    assert snr is not None
    lost = sum(x.score != math.inf for x in scores)
    those = f"mean of the {lost} of {len(scores)} layers that differ"
    if measured:
        what = f"layers' outputs as executed on {device} ({those})"
    else:
        why = "no calibration given" if not given else "no layer that the calibration reached"
        what = f"layers' weights ({those}; {why}; calibrated rounding lowers this on purpose)"
    return Comparison(snr, what, worst_first(scores), device=device)


def _faults(missing: Sequence[str], broken: Sequence[str]) -> list[str]:
    faults = []
    if missing:
        faults.append(
            f"{len(missing)} layers of the reference are missing in the quantized model, or have "
            f"another shape: {listed(missing)}"
        )
    if broken:
        faults.append(f"{show(-math.inf)} in {listed(broken)}")
    return faults


def _with(comparison: Comparison, work: _Pair, notes: list[str], faults: list[str]) -> Comparison:
    notes = [*notes, *work.unlike()]
    if comparison.exact is None:
        notes = [*notes, "weights only: give a calibration to score what the layers compute"]
    return replace(
        comparison,
        only_reference=tuple(work.only_first),
        only_quantized=tuple(work.only_second),
        notes=tuple(notes),
        faults=tuple(faults),
    )


class _Pair:
    """Two checkpoints as models, their tensors matched by name.

    Attributes:
        first, second: the models.
        layers: of the first, the weights of layers both have in the same shape: their names in the
            second.
        rest: the same for all other tensors.
        only_first, only_second: layers without a partner.
        spoiled: layers scored so far whose weights are NaN or Inf in the first model.
    """

    def __init__(self, first: ModelView, second: ModelView, device: torch.device) -> None:
        self.first, self.second, self.device = first, second, device
        self.decodes = decodes_weights(first)
        names = LayerNames(_layers(second))
        self.layers: dict[str, str] = {}
        self._unlike: dict[str, str] = {}
        self.spoiled: set[str] = set()
        for layer in _layers(first):
            found = names.find(layer)
            key = layer + _WEIGHT
            if found is None:
                continue
            if second.shape(found + _WEIGHT) == first.shape(key):
                self.layers[key] = found + _WEIGHT
            else:
                self._unlike[key] = found + _WEIGHT
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

    def unlike(self, most: int = 3) -> list[str]:
        """The shapes of the first few layers that have another one in the second model."""
        return [
            f"{a.removesuffix(_WEIGHT)} is {_shown(self.first.shape(a))} in the reference, "
            f"{_shown(self.second.shape(b))} in the quantized model"
            for a, b in list(self._unlike.items())[:most]
        ]

    def score(self, name: str, calibration: Calibration | None) -> LayerScore:
        """The score of the layer whose weight is ``name`` in the first model."""
        other, shape = self.layers[name], self.first.shape(name)
        record = None if calibration is None else calibration.usable(name)
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
        if not math.isfinite(scores.power):
            self.spoiled.add(name.removesuffix(_WEIGHT))
        executed = None
        if x is not None:
            expected = run_layer(self.first, name, x, bias[0], self.decodes)
            got = run_layer(self.second, other, x, bias[1], self.decodes)
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

    def difference(self, name: str) -> Power:
        """Power of a tensor that is no linear layer's weight, and of its error."""
        other, power = self.rest[name], Power()
        shape = self.first.shape(name)
        if not shape:
            power.add(self.first.source.read(name), self.second.source.read(other))
            return power
        step = max(_AT_ONCE // max(math.prod(shape[1:]), 1), 1)
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            power.add(
                self.first.read_rows(name, start, stop), self.second.read_rows(other, start, stop)
            )
        return power


def _layers(view: ModelView) -> list[str]:
    """Layers with a two-dimensional weight, in file order."""
    return [
        name.removesuffix(_WEIGHT)
        for name in view.names
        if name.endswith(_WEIGHT) and len(view.shape(name)) == 2 and view.is_weight(name)
    ]


def _bias(view: ModelView, name: str) -> Tensor | None:
    """The bias of the layer whose weight is ``name``. Raises RoundsmithError if it does not fit."""
    key = name.removesuffix("weight") + "bias"
    if key not in view.source.tensors:
        return None
    bias, outputs = view.source.read(key), view.shape(name)[0]
    if bias.numel() not in (1, outputs):
        raise RoundsmithError(
            f"{getattr(view.source, 'path', 'the model')}: {key} is {list(bias.shape)}, its layer "
            f"has {outputs} outputs: the file is damaged, fetch or make it again"
        )
    return bias


def _shown(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


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
