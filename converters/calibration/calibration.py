"""Statistics of the inputs of a model's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import RoundsmithError
from ..rounding.problem import MIN_TOKENS
from .fingerprint import Fingerprint, normalised
from .merging import merge_records
from .record import Record, Summary

_SAME_RUN = (
    "both calibrations hold the same run: its tokens would count twice; merge runs on other "
    "prompts or seeds, or use one of them alone"
)


@dataclass(frozen=True, eq=False)
class Shelf:
    """Where a record is: its numbers at hand, its tensors when asked for."""

    summary: Summary
    load: Callable[[], Record]

    @classmethod
    def keeping(cls, record: Record) -> Shelf:
        """A record in memory."""
        return cls(record.summary, lambda: record)


class Calibration:
    """Statistics of the inputs of a model's linear layers, from one run or several.

    Attributes:
        settings: how they were taken; JSON values. ``slowdown`` is the time of a captured call of
            the model as a multiple of the call alone.
        notes: what happened on the way that a person should know.
        fingerprint: which model they belong to.
        influences: how much an error of each layer matters to the model's output, relative to
            relative (see ``influence.py``); empty where that was not measured.
    """

    def __init__(
        self,
        shelves: Mapping[str, Shelf | None],
        settings: Mapping[str, Any] | None = None,
        notes: Iterable[str] = (),
        fingerprint: Fingerprint | None = None,
        influences: Mapping[str, float] | None = None,
    ) -> None:
        """``shelves``: by layer; None for a layer that was never reached. Layers fed by one tensor
        have the same shelf.
        """
        self.settings: dict[str, Any] = dict(settings or {})
        self.notes: list[str] = list(notes)
        self.fingerprint = fingerprint or Fingerprint({})
        self.influences: dict[str, float] = dict(influences or {})
        self._shelves: dict[str, Shelf | None] | None = dict(shelves)
        self._why_not = ""

    @classmethod
    def pending(cls) -> Calibration:
        """One that is still being captured: asking it for statistics is an error."""
        calibration = cls({})
        calibration.close("the capture is not over: read it after the with block")
        return calibration

    def close(self, why: str) -> None:
        """Give the statistics up; asking for them afterwards is an error that says ``why``."""
        self._shelves, self._why_not = None, why

    def take(self, other: Calibration) -> None:
        """Become ``other``, and keep the settings noted so far."""
        self.__dict__.update({**vars(other), "settings": {**other.settings, **self.settings}})

    @property
    def shelves(self) -> Mapping[str, Shelf | None]:
        """The records by layer. Raises RoundsmithError while there are none to be had."""
        if self._shelves is None:
            raise RoundsmithError(f"there are no statistics: {self._why_not}")
        return self._shelves

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that were watched, whether reached or not."""
        return tuple(self.shelves)

    @property
    def unreached(self) -> tuple[str, ...]:
        """Layers that were watched and never called."""
        return tuple(name for name, shelf in self.shelves.items() if shelf is None)

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the statistics, by kind, with an example each."""
        shelves = {name: shelf.summary for name, shelf in self.shelves.items() if shelf is not None}
        kinds = {
            "were never reached in the run and have no statistics": self.unreached,
            "saw only NaN or Inf": [n for n, s in shelves.items() if not s.count and s.nonfinite],
            "saw tokens with NaN or Inf, which were left out": [
                n for n, s in shelves.items() if s.count and s.nonfinite
            ],
            f"saw fewer than {MIN_TOKENS} tokens, too few to round against": [
                n for n, s in shelves.items() if 0 < s.count < MIN_TOKENS
            ],
        }
        return [
            f"{len(names)} of {len(self.shelves)} layers {what} ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''})"
            for what, names in kinds.items()
            if names
        ]

    def summary(self, layer: str) -> Summary | None:
        """The numbers of a layer's record; None where :meth:`record` gives None."""
        shelf = self.shelf(layer)
        return None if shelf is None else shelf.summary

    def record(self, layer: str) -> Record | None:
        """The statistics of a layer; None if it was never reached or is not known.

        Prefixes that checkpoints put before a diffusion model's names do not matter, nor does
        ``.weight`` at the end. From a file, the tensors are read now and not kept.

        Raises:
            CheckpointError: the file has become unreadable.
        """
        shelf = self.shelf(layer)
        return None if shelf is None else shelf.load()

    def shelf(self, layer: str) -> Shelf | None:
        """Where a layer's record is; None where :meth:`record` gives None."""
        return self.shelves.get(self._find(layer))

    def usable(self, layer: str) -> Record | None:
        """:meth:`record`, or None where it is of no use (:meth:`Record.problem` says why)."""
        record = self.record(layer)
        return None if record is None or record.problem() else record

    def influence(self, layer: str) -> float | None:
        """How much an error of a layer matters in the end; None: not measured."""
        return self.influences.get(self._find(layer))

    def shares(self, layer: str) -> tuple[str, ...]:
        """The layers that have the record of ``layer``, itself included."""
        shelf = self.shelves.get(self._find(layer))
        return tuple(n for n, other in self.shelves.items() if shelf is not None and other is shelf)

    def _find(self, layer: str) -> str:
        if layer in self.shelves:
            return layer
        names = {normalised(name): name for name in self.shelves}
        return names.get(normalised(layer), layer)

    def under(self, prefix: str) -> Calibration:
        """The layers whose name begins with ``prefix``, called without it."""
        shelves = {n[len(prefix) :]: s for n, s in self.shelves.items() if n.startswith(prefix)}
        marks = self.fingerprint.under(prefix)
        influences = {
            n[len(prefix) :]: i for n, i in self.influences.items() if n.startswith(prefix)
        }
        return Calibration(shelves, self.settings, self.notes, marks, influences)

    def check(self, model: Fingerprint) -> list[str]:
        """Warnings about using the statistics for ``model``.

        Raises:
            RoundsmithError: they belong to another model.
        """
        return self.fingerprint.check(model)

    def merge(self, other: Calibration) -> Calibration:
        """The statistics of both runs together, as if of one.

        Raises:
            RoundsmithError: the other belongs to another model, or is the same run; a layer's width
                differs.
        """
        if not isinstance(other, Calibration):
            raise RoundsmithError(f"a Calibration is merged with another, not with {other!r}")
        notes = [*self.notes, *(note for note in other.notes if note not in self.notes)]
        if self.fingerprint.marks and other.fingerprint.marks:
            for warning in other.fingerprint.check(self.fingerprint):
                if warning not in notes:
                    notes.append(warning)
        self._check_other_run(other)
        pairs: dict[tuple[int, int], Shelf] = {}
        shelves: dict[str, Shelf | None] = {}
        for name in dict.fromkeys((*self.shelves, *other.shelves)):
            mine, its = self.shelves.get(name), other.shelves.get(name)
            if mine is None or its is None:
                shelves[name] = mine or its
                continue
            key = (id(mine), id(its))
            if key not in pairs:
                pairs[key] = Shelf.keeping(merge_records(mine.load(), its.load(), name))
            shelves[name] = pairs[key]
        runs = [*_runs(self.settings), *_runs(other.settings)]
        marks = self.fingerprint.joined(other.fingerprint)
        influences = {**self.influences, **other.influences}
        for name in self.influences.keys() & other.influences.keys():
            influences[name] = (self.influences[name] + other.influences[name]) / 2
        return Calibration(shelves, {**runs[0], "runs": runs}, notes, marks, influences)

    def _check_other_run(self, other: Calibration) -> None:
        """Tokens that count twice are worse than none: those set aside would be fitted too.

        A run is known by its number; one of an older file, or taken twice, by what it measured.
        """
        runs = [{run.get("run") for run in _runs(c.settings)} for c in (self, other)]
        if (runs[0] & runs[1]) - {None}:
            raise RoundsmithError(_SAME_RUN)
        alike = 0
        for name, shelf in self.shelves.items():
            its = other.shelves.get(name)
            if shelf is None or its is None:
                continue
            if shelf.summary != its.summary:
                return
            if shelf is not its:
                a, b = shelf.load(), its.load()
                if not (torch.equal(a.histogram, b.histogram) and torch.equal(a.mean, b.mean)):
                    return
            alike += 1
        if alike:
            raise RoundsmithError(_SAME_RUN)

    @classmethod
    def join(cls, parts: Iterable[Calibration]) -> Calibration:
        """The passes of one run over different layers, as one.

        Raises:
            RoundsmithError: two parts have the same layer.
        """
        shelves: dict[str, Shelf | None] = {}
        settings: dict[str, Any] = {}
        notes: list[str] = []
        marks = Fingerprint({})
        influences: dict[str, float] = {}
        passes = 0
        for passes, part in enumerate(parts, 1):  # noqa: B007 - how many there were
            twice = shelves.keys() & part.shelves.keys()
            if twice:
                raise RoundsmithError(
                    f"layer {min(twice)!r} was captured in two passes; use merge() for runs over "
                    "the same layers"
                )
            shelves.update(part.shelves)
            settings = _joined(settings, part.settings)
            notes.extend(note for note in part.notes if note not in notes)
            marks = marks.joined(part.fingerprint)
            influences.update(part.influences)
        return cls(shelves, {**settings, "passes": passes}, notes, marks, influences)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write everything to one safetensors file, which appears under its name when complete.

        Raises:
            CheckpointError: the file cannot be written.
        """
        from .files import save

        return save(self, path, overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Open a file of :meth:`save`. Its tensors are read when a record is asked for.

        Raises:
            CheckpointError: the file is damaged, truncated, or something else.
        """
        from .files import load

        return load(path)


def _runs(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    runs = settings.get("runs")
    return list(runs) if isinstance(runs, list) and runs else [dict(settings)]


def _joined(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of two passes: times and layers add up, the slowdown is the larger."""
    joined = {**first, **then}
    for key in ("layers", "seconds"):
        if key in first and key in then:
            joined[key] = first[key] + then[key]
    slowdowns = [s["slowdown"] for s in (first, then) if s.get("slowdown") is not None]
    if slowdowns:
        joined["slowdown"] = max(slowdowns)
    return joined
