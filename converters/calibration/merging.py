"""Two records of one layer's inputs, from two runs, as one."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import RoundsmithError
from .record import Record, held_rows

_ROWS_AT_ONCE = 512


def merge_records(a: Record, b: Record, layer: str = "") -> Record:
    """As if the tokens of both had been seen in one run.

    The sample is drawn from both in proportion to the tokens seen; tokens that leave it go into the
    moment, if one of the records has one. Of a record without a moment, the tokens of the sample
    stand for all the others. Tokens of calls set aside are merged likewise, and stay set aside.
    The result is the same each time.

    Raises:
        RoundsmithError: the records are of different widths.
    """
    if a.features != b.features:
        raise RoundsmithError(
            f"layer {layer!r} has {a.features} inputs in one calibration and {b.features} in the "
            "other: they belong to different models"
        )
    if not a.count or not b.count:
        return _counted(a if a.count else b, a, b)
    entropy = (zlib.crc32(layer.encode()), a.count, b.count)
    generator = np.random.default_rng(entropy)
    moment, moment_count = None, 0
    measured = a.moment is not None or b.moment is not None
    capacity = max(a.capacity, b.capacity)
    room = held_rows(capacity, measured) if a.held or b.held else 0
    held = _sample(_Part.held(a), _Part.held(b), room, generator)[0]
    fitted = _Part.fitted(a), _Part.fitted(b)
    tokens, keep_a, keep_b = _sample(*fitted, capacity - room, generator)
    if measured:
        moment, moment_count = _rest(fitted[0], keep_a, fitted[1], keep_b)
    count = a.count + b.count
    part = b.count / count
    return _counted(
        Record(
            features=a.features,
            count=count,
            nonfinite=0,
            capacity=capacity,
            mean=(a.mean.double() * (1 - part) + b.mean.double() * part).float(),
            absmax=torch.maximum(a.absmax, b.absmax),
            histogram=a.histogram + b.histogram,
            tokens=torch.cat((held, tokens)),
            moment=moment,
            moment_count=moment_count,
            held=len(held),
            held_seen=a.held_seen + b.held_seen,
        ),
        a,
        b,
    )


def _counted(record: Record, a: Record, b: Record) -> Record:
    return replace(record, nonfinite=a.nonfinite + b.nonfinite)


class _Part(NamedTuple):
    """The tokens of one kind of call, of one record: a sample, what was seen, what was measured."""

    tokens: Tensor
    seen: int
    moment: Tensor | None = None
    moment_count: int = 0

    @classmethod
    def held(cls, record: Record) -> _Part:
        """Of the calls set aside."""
        return cls(record.tokens[: record.held], record.held_seen)

    @classmethod
    def fitted(cls, record: Record) -> _Part:
        """Of the others."""
        count = record.count - record.held_seen
        return cls(record.tokens[record.held :], count, record.moment, record.moment_count)


def _sample(
    a: _Part, b: _Part, capacity: int, generator: np.random.Generator
) -> tuple[Tensor, int, int]:
    """A sample of both in proportion, as large as can be, and how many each gave to it."""
    count = a.seen + b.seen
    room = min(capacity, count)
    for part in (a, b):
        if part.seen:
            room = min(room, len(part.tokens) * count // part.seen)
    keep = int(room * a.seen / count + generator.random()) if count else 0
    keep_a = min(keep, len(a.tokens))
    keep_b = min(room - keep, len(b.tokens))
    tokens = torch.cat((a.tokens[:keep_a], b.tokens[:keep_b]))
    return tokens[torch.from_numpy(generator.permutation(len(tokens)))], keep_a, keep_b


def _rest(a: _Part, keep_a: int, b: _Part, keep_b: int) -> tuple[Tensor, int]:
    """Mean x·xᵀ over the tokens that are not in the sample, and how many were measured."""
    features = a.tokens.shape[1]
    total = torch.zeros(features, features)
    stands_for, measured = 0, 0
    for part, keep in ((a, keep_a), (b, keep_b)):
        unchosen = part.tokens[keep:]
        known = part.moment_count + len(unchosen)
        if not known:
            continue
        weight = (part.seen - keep) / known
        if part.moment is not None:
            total.add_(part.moment, alpha=weight * part.moment_count)
        for rows in unchosen.split(_ROWS_AT_ONCE):
            rows = rows.float()
            total.addmm_(rows.T, rows, alpha=weight)
        stands_for += part.seen - keep
        measured += known
    return total / max(stands_for, 1), measured
