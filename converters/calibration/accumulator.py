"""Statistics of a stream of tokens, gathered online in bounded memory.

What a batch adds is computed first (:meth:`Accumulator.digest`) and added later
(:meth:`Accumulator.commit`), so that a batch can still be given up in between.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .budget import CHUNK, Size
from .histogram import BINS, histogram, magnitude_bits, magnitudes
from .record import Record, Summary, held_rows, set_aside
from .reservoir import Draw, FileRows, Indices, MemoryRows, RowFile, Rows, Sampler

_PANEL = 256  # columns of a moment formed at a time: half of it is never computed
_ON_A_DEVICE = 32  # times larger chunks: each costs launches and a wait


@dataclass
class Totals:
    """What is known of all tokens: ``total`` float64 ``[N]``, ``absmax`` float32 ``[N]``,
    ``histogram`` int64 ``[BINS]``, on the CPU.
    """

    count: int
    nonfinite: int
    total: Tensor
    absmax: Tensor
    histogram: Tensor

    @classmethod
    def none(cls, features: int) -> Totals:
        """Of no tokens."""
        total = torch.zeros(features, dtype=torch.float64, device="cpu")
        counts = torch.zeros(BINS, dtype=torch.int64, device="cpu")
        return cls(0, 0, total, torch.zeros(features, dtype=torch.float32, device="cpu"), counts)

    @classmethod
    def of(cls, rows: Tensor) -> tuple[Totals, Tensor | None]:
        """Of the finite ones of ``rows`` ``[T, N]``, and which those are; None: all of them."""
        bits = magnitude_bits(rows)
        absmax = magnitudes(bits.amax(dim=0)).cpu()
        if bool(absmax.isfinite().all()):  # the bits of NaN and Inf are the largest
            total = rows.sum(dim=0, dtype=_sum_dtype(rows)).cpu().double()
            return cls(len(rows), 0, total, absmax, histogram(bits).cpu()), None
        finite = magnitudes(bits.amax(dim=1)).isfinite()
        good = rows[finite]
        totals = cls.of(good)[0] if len(good) else cls.none(rows.shape[1])
        totals.nonfinite = len(rows) - len(good)
        return totals, finite

    def add(self, other: Totals) -> None:
        """Count the tokens of ``other`` as well."""
        self.count += other.count
        self.nonfinite += other.nonfinite
        self.total += other.total
        self.absmax = torch.maximum(self.absmax, other.absmax)
        self.histogram += other.histogram

    def copy(self) -> Totals:
        """The same numbers in memory of their own."""
        return Totals(
            self.count, self.nonfinite, self.total.clone(), self.absmax, self.histogram.clone()
        )


class Batch(NamedTuple):
    """What some tokens add to a record, on the CPU.

    Attributes:
        totals: of all of them.
        draw: which of them are kept, and where.
        sampler: the sampler after them; of the calls set aside where ``held``.
        held: whether their call is set aside.
        rows: bfloat16 ``[k, N]``, those kept.
        outer: float32 ``[N, N]``, sum of x·xᵀ over the others, upper triangle; None without a
            moment, and of a call set aside.
    """

    totals: Totals
    draw: Draw
    sampler: Sampler
    held: bool
    rows: Tensor
    outer: Tensor | None


class Accumulator:
    """One record in the making. What is digested at a time counts as one call of the layer.

    Slots of the calls set aside are the first, and taken from the sample when the first of those
    calls comes: fewer calls keep all slots for one sample.
    """

    def __init__(
        self,
        features: int,
        size: Size,
        entropy: tuple[int, ...] = (0,),
        store: RowFile | None = None,
    ) -> None:
        """``entropy`` seeds the sample; ``store``: the file its tokens go to, else to memory."""
        self.features = features
        self._totals = Totals.none(features)
        self._calls = 0
        self._sampler = Sampler(size.rows, entropy)
        self._held = Sampler(held_rows(size.rows, size.moment), (*entropy, 1))
        self._first = 0  # slots of calls set aside
        self._outer = torch.zeros(features, features, device="cpu") if size.moment else None
        self._rows: Rows
        if store is None:
            self._rows = MemoryRows(size.rows, features)
        else:
            self._rows = FileRows(store, size.rows, features)

    def add(self, x: Tensor) -> None:
        """Add the tokens ``x``: digest and commit, without a second moment in between."""
        batch = self.digest(x, into=self._outer)
        self.commit(batch._replace(outer=None))

    def digest(self, x: Tensor, into: Tensor | None = None) -> Batch:
        """What the tokens ``x`` (``[..., N]``, any floating dtype and device) would add.

        They are reduced where they are, a bounded number of values at a time. Tokens with a value
        that is NaN or Inf are counted and left out. ``into``: a sum of outer products on the CPU to
        add to; else the batch has a new one.
        """
        totals, finite = Totals.none(self.features), []
        for chunk in chunks(x):
            part, mask = Totals.of(chunk)
            totals.add(part)
            finite.append(mask)
        held = self._held.capacity > 0 and set_aside(self._calls)
        before = self._held if held else self._sampler
        draw = before.draw(totals.count)
        sampler = before._replace(seen=before.seen + totals.count)
        return Batch(totals, draw, sampler, held, *self._take(x, finite, draw, held, into))

    def _take(
        self, x: Tensor, finite: list[Tensor | None], draw: Draw, held: bool, into: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The rows drawn, and the outer products of the others, unless ``held``."""
        kept = torch.empty(len(draw.index), self.features, dtype=torch.bfloat16, device="cpu")
        outer = into if x.device.type == "cpu" else None
        measured = self._outer is not None and not held
        if not measured and not len(draw.index):
            return kept, None
        start = 0
        for chunk, mask in zip(chunks(x), finite, strict=True):
            rows = chunk if mask is None else chunk[mask]
            low, high = np.searchsorted(draw.index, (start, start + len(rows)))
            index = torch.from_numpy(draw.index[low:high] - start)
            if low < high:
                kept[low:high] = rows[index.to(rows.device)].to(torch.bfloat16).cpu()
            if measured and len(index) < len(rows):
                rest = rows
                if len(index):
                    others = torch.ones(len(rows), dtype=torch.bool, device="cpu")
                    others[index] = False
                    rest = rows[others.to(rows.device)]
                if outer is None:
                    outer = torch.zeros(self.features, self.features, device=rest.device)
                add_outer(outer, rest)
            start += len(rows)
        if outer is None or into is None or outer is into:
            return kept, None if outer is None else outer.cpu()
        into += outer.cpu()
        return kept, into

    def commit(self, batch: Batch) -> None:
        """Add a batch that was digested after everything added so far."""
        self._totals.add(batch.totals)
        self._calls += 1
        if batch.held:
            if self._first == 0:
                self._make_room()
            self._held, slots = batch.sampler, batch.draw.slots
        else:
            self._sampler, slots = batch.sampler, batch.draw.slots + self._first
            if batch.outer is not None and self._outer is not None:
                self._outer += batch.outer
            self._measure(slots[batch.draw.replaces])
        if len(slots):
            self._rows.put(slots, batch.rows)

    def _make_room(self) -> None:
        """Keep a smaller sample, in the slots behind those of the calls set aside."""
        old = self._sampler
        self._sampler = old._replace(capacity=old.capacity - self._held.capacity)
        kept = old.filled()
        moved, dropped = np.split(kept, [self._sampler.capacity])
        self._measure(dropped)
        rows = self._rows.get(moved).clone()
        self._first = self._held.capacity
        self._rows.put(self._sampler.filled() + self._first, rows)

    def _measure(self, slots: Indices) -> None:
        """Add what lies in ``slots`` to the moment, as it leaves the sample."""
        if self._outer is not None and len(slots):
            add_outer(self._outer, self._rows.get(slots))

    @property
    def _slots(self) -> Indices:
        """The slots that hold a token, those of calls set aside first."""
        return np.concatenate((self._held.filled(), self._sampler.filled() + self._first))

    def fork(self) -> Accumulator:
        """The same statistics so far, to go on separately."""
        twin = copy.copy(self)
        twin._totals = self._totals.copy()
        twin._outer = None if self._outer is None else self._outer.clone()
        twin._rows = self._rows.copy()
        return twin

    @property
    def summary(self) -> Summary:
        """The numbers of the record so far."""
        kept, held = self._sampler.kept, self._held.kept
        measured = None if self._outer is None else self._sampler.seen - kept
        return Summary(
            self.features,
            self._totals.count,
            self._totals.nonfinite,
            self._sampler.capacity + self._first,
            kept + held,
            measured,
            held,
            self._held.seen,
        )

    def finish(self) -> None:
        """Make the sum of outer products a mean; nothing can be added afterwards."""
        if self._outer is not None:
            self._outer /= max(self.summary.moment_count or 0, 1)
            _mirror(self._outer)

    def record(self) -> Record:
        """The statistics, once finished; tokens in a file are read."""
        summary = self.summary
        return Record(
            features=self.features,
            count=summary.count,
            nonfinite=summary.nonfinite,
            capacity=summary.capacity,
            mean=(self._totals.total / max(summary.count, 1)).float(),
            absmax=self._totals.absmax,
            histogram=self._totals.histogram,
            tokens=self._rows.get(self._slots),
            moment=self._outer,
            moment_count=summary.moment_count or 0,
            held=summary.held,
            held_seen=summary.held_seen,
        )


def add_outer(outer: Tensor, rows: Tensor) -> None:
    """Add the sum of x·xᵀ over ``rows`` ``[T, N]`` to the upper triangle of ``outer`` ``[N, N]``.

    Below the diagonal, what is there afterwards means nothing. Half-precision values are multiplied
    as they are where the device adds them up in float32.
    """
    exact = rows.is_cuda and torch.version.hip is None
    if not (exact and rows.dtype in (torch.bfloat16, torch.float16)):
        rows = rows.float()
    for first in range(0, rows.shape[1], _PANEL):
        panel = rows[:, first : first + _PANEL]
        right = rows[:, first:]
        target = outer[first : first + _PANEL, first:]
        if rows.dtype == torch.float32:
            target.addmm_(panel.T, right)
        else:
            target += torch.mm(panel.T, right, out_dtype=torch.float32)


def _mirror(moment: Tensor) -> None:
    """Copy what is above the diagonal below it."""
    for first in range(0, len(moment), _PANEL):
        block = moment[first : first + _PANEL, first : first + _PANEL]
        block.copy_(block.triu() + block.triu(1).T)
        above = moment[first : first + _PANEL, first + _PANEL :]
        moment[first + _PANEL :, first : first + _PANEL] = above.T


def chunks(x: Tensor) -> Iterator[Tensor]:
    """The tokens of ``x`` (``[..., N]``) as views ``[T, N]`` of a bounded number of values."""
    width = x.shape[-1]
    limit = CHUNK if x.device.type == "cpu" else CHUNK * _ON_A_DEVICE
    try:
        rows = x.view(-1, width) if x.dim() != 2 else x
    except RuntimeError:  # its strides do not let tokens lie in one dimension
        for part in x:
            yield from chunks(part)
        return
    if len(rows):
        yield from rows.split(max(limit // max(width, 1), 1))


def _sum_dtype(rows: Tensor) -> torch.dtype:
    return torch.float64 if rows.dtype == torch.float64 else torch.float32
