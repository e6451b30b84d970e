"""Which model statistics belong to: shapes, and a few weights of each layer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, RoundsmithError
from ..model import ModelView
from .layers import IsLinear, features, is_linear

_SAMPLES = 32
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_SAME = 0.995  # cosine; 8-bit codes of the same weights reach 0.999
_RELATED = 0.5
_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def normalised(name: str) -> str:
    """A layer's name as the network itself calls it."""
    name = name.removesuffix(".weight")
    return next((name[len(p) :] for p in _PREFIXES if name.startswith(p)), name)


class Mark(NamedTuple):
    """A layer's shape (out, in) and the first weights of its first row; none where it was quantized
    already, or not in memory.
    """

    shape: tuple[int, int]
    samples: tuple[float, ...] = ()


class Fingerprint:
    """What tells a model from others. ``marks``: by layer, names as in :func:`normalised`."""

    def __init__(self, marks: Mapping[str, Mark]) -> None:
        self.marks = {normalised(name): mark for name, mark in marks.items()}

    @classmethod
    def of_module(
        cls, module: nn.Module, layers: Iterable[str] | None = None, linear: IsLinear = is_linear
    ) -> Fingerprint:
        """Of the linear layers of ``module``, or of those named."""
        wanted = None if layers is None else set(layers)
        marks = {}
        for name, child in module.named_modules():
            if linear(child) and (wanted is None or name in wanted):
                weight = getattr(child, "weight", None)
                out = getattr(child, "out_features", None) or getattr(weight, "shape", (0,))[0]
                marks[name] = Mark((int(out), features(child)), _samples_of_weight(weight))
        return cls(marks)

    @classmethod
    def of_view(cls, view: ModelView) -> Fingerprint:
        """Of the two-dimensional weights of a file, or of a model in memory; a row each is read."""
        marks = {}
        for name in view.names:
            shape = view.shape(name)
            if not name.endswith(".weight") or len(shape) != 2 or not view.is_weight(name):
                continue
            samples: tuple[float, ...] = ()
            if view.stored_layer(name) is None and shape[0]:
                samples = _samples(view.read_rows(name, 0, 1))
            marks[name] = Mark((shape[0], shape[1]), samples)
        return cls(marks)

    def check(self, model: Fingerprint) -> list[str]:
        """Whether statistics with this fingerprint belong to ``model``.

        Returns:
            Warnings: the model is a fine-tune, or lacks some layers.

        Raises:
            RoundsmithError: they belong to another model.
        """
        if not self.marks:
            return ["the statistics do not say which model they belong to"]
        common = [name for name in self.marks if name in model.marks]
        for name in common:
            mine, other = self.marks[name].shape, model.marks[name].shape
            if mine != other:
                raise _another(f"{name} is {_by(other)} here and was {_by(mine)} there")
        missing = [name for name in self.marks if name not in model.marks]
        likeness = self._likeness(model, common)
        a_part = likeness is not None and likeness >= _SAME  # of the model, and of no other
        if len(missing) * 2 >= len(self.marks) and not a_part:
            raise _another(
                f"{len(missing)} of its {len(self.marks)} layers are not in this one ({missing[0]})"
            )
        warnings = []
        if likeness is None and self._sampled and not model._sampled:
            warnings.append(
                "whether the statistics are of this model could be told by names and shapes only, "
                "since its weights are quantized already"
            )
        if missing:
            warnings.append(
                f"{len(missing)} layers of the statistics are not in the model ({missing[0]}, ...)"
            )
        if likeness is not None and likeness < _RELATED:
            raise _another("layers and shapes are the same, but the weights have nothing in common")
        if likeness is not None and likeness < _SAME:
            warnings.append(
                "the statistics were taken from a model with somewhat different weights "
                f"(similarity {likeness:.2f}): a fine-tune, or one with a LoRA; they still serve"
            )
        return warnings

    @property
    def _sampled(self) -> bool:
        return any(mark.samples for mark in self.marks.values())

    def _likeness(self, model: Fingerprint, names: Iterable[str]) -> float | None:
        """Mean cosine of the layers' samples, weighted by their number; None: nothing to compare.
        """
        total = weight = 0.0
        for name in names:
            mine, other = self.marks[name].samples, model.marks[name].samples
            count = min(len(mine), len(other))
            size = math.sqrt(_dot(mine, mine, count) * _dot(other, other, count))
            if size > 0 and math.isfinite(size):
                total += count * _dot(mine, other, count) / size
                weight += count
        return total / weight if weight else None

    def under(self, prefix: str) -> Fingerprint:
        """Of the layers whose name begins with ``prefix``, without it."""
        marks = {n[len(prefix) :]: m for n, m in self.marks.items() if n.startswith(prefix)}
        return Fingerprint(marks)

    def joined(self, other: Fingerprint) -> Fingerprint:
        """Of the layers of both."""
        return Fingerprint({**other.marks, **self.marks})

    def to_json(self) -> str:
        """As text, to keep in a file."""
        rounded = {
            name: [*mark.shape, [float(f"{value:.6g}") for value in mark.samples]]
            for name, mark in self.marks.items()
        }
        return json.dumps(rounded)

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """From :meth:`to_json`. Raises CheckpointError."""
        try:
            return cls(
                {
                    str(name): Mark((int(out), int(width)), tuple(map(float, samples)))
                    for name, (out, width, samples) in json.loads(text).items()
                }
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the model's fingerprint cannot be read: {error}") from error


def _samples_of_weight(weight: object) -> tuple[float, ...]:
    plain = type(weight) in (Tensor, nn.Parameter) and isinstance(weight, Tensor)
    if not plain or not isinstance(weight, Tensor) or weight.is_meta or weight.dim() != 2:
        return ()
    return _samples(weight[:1])


def _samples(rows: Tensor) -> tuple[float, ...]:
    if rows.dtype not in _FLOATING or not rows.numel():
        return ()
    values = rows.detach().reshape(-1)[:_SAMPLES].float().cpu()
    return tuple(values.tolist()) if bool(values.isfinite().all()) else ()


def _dot(a: tuple[float, ...], b: tuple[float, ...], count: int) -> float:
    return sum(x * y for x, y in zip(a[:count], b[:count], strict=True))


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _another(why: str) -> RoundsmithError:
    return RoundsmithError(
        f"the calibration belongs to another model: {why}; calibrate this model, or choose its own "
        "calibration"
    )
