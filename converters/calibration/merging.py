"""Two records of one layer's inputs, from two runs, as one."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...errors import RoundsmithError
from .record import Record

_ROWS_AT_ONCE = 512


def merge_records(a: Record, b: Record, layer: str = "") -> Record:
    """As if the tokens of both had been seen in one run.

    The sample is drawn from both in proportion to the tokens seen; tokens that leave it go into the
    moment, if one of the records has one. Of a record without a moment, the tokens of the sample
    stand for all the others. The result is the same each time.

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
    keep_a, keep_b = _shares(a, b, generator)
    tokens = torch.cat((a.tokens[:keep_a], b.tokens[:keep_b]))
    tokens = tokens[torch.from_numpy(generator.permutation(len(tokens)))]
    moment, moment_count = None, 0
    if a.moment is not None or b.moment is not None:
        moment, moment_count = _rest(a, keep_a, b, keep_b)
    count = a.count + b.count
    part = b.count / count
    return _counted(
        Record(
            features=a.features,
            count=count,
            nonfinite=0,
            capacity=max(a.capacity, b.capacity),
            mean=(a.mean.double() * (1 - part) + b.mean.double() * part).float(),
            absmax=torch.maximum(a.absmax, b.absmax),
            histogram=a.histogram + b.histogram,
            tokens=tokens,
            moment=moment,
            moment_count=moment_count,
        ),
        a,
        b,
    )


def _counted(record: Record, a: Record, b: Record) -> Record:
    return replace(record, nonfinite=a.nonfinite + b.nonfinite)


def _shares(a: Record, b: Record, generator: np.random.Generator) -> tuple[int, int]:
    """How many tokens of each a sample in proportion has: as many as there can be."""
    held_a, held_b = len(a.tokens), len(b.tokens)
    count = a.count + b.count
    room = min(max(a.capacity, b.capacity), held_a * count // a.count, held_b * count // b.count)
    room = min(room, count)
    keep = int(room * a.count / count + generator.random())
    return min(keep, held_a), min(room - keep, held_b)


def _rest(a: Record, keep_a: int, b: Record, keep_b: int) -> tuple[Tensor, int]:
    """Mean x·xᵀ over the tokens that are not in the sample, and how many were measured."""
    total = torch.zeros(a.features, a.features)
    stands_for, measured = 0, 0
    for record, keep in ((a, keep_a), (b, keep_b)):
        unchosen = record.tokens[keep:]
        known = record.moment_count + len(unchosen)
        if not known:
            continue
        weight = (record.count - keep) / known
        if record.moment is not None:
            total.add_(record.moment, alpha=weight * record.moment_count)
        for rows in unchosen.split(_ROWS_AT_ONCE):
            rows = rows.float()
            total.addmm_(rows.T, rows, alpha=weight)
        stands_for += record.count - keep
        measured += known
    return total / max(stands_for, 1), measured
