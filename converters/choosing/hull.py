"""The best use of bytes: for each layer one of several options, so that the errors' sum is least.

Only options on the lower convex hull of a layer's (bytes, error) points are ever worth their bytes.
Walking all hulls together by falling gain a byte gives, at each step, the best choice for the size
reached (Lagrange multipliers; Shoham & Gersho 1988).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """What a layer may be stored as: its bytes, and the error that makes."""

    nbytes: int
    error: float


class Step(NamedTuple):
    """One layer changed to a larger option, and what all layers then come to."""

    layer: int
    option: int
    nbytes: int
    error: float


def hull(options: Sequence[Option]) -> list[int]:
    """Positions of the options on the lower convex hull, by growing size and falling error."""
    order = sorted(range(len(options)), key=lambda i: options[i])
    kept: list[int] = []
    for i in order:
        if kept and options[i].error >= options[kept[-1]].error:
            continue
        while len(kept) > 1 and _gain(options, kept[-1], i) >= _gain(options, kept[-2], kept[-1]):
            kept.pop()
        kept.append(i)
    return kept


def _gain(options: Sequence[Option], a: int, b: int) -> float:
    """Error saved a byte from one option to a larger one."""
    return (options[a].error - options[b].error) / max(options[b].nbytes - options[a].nbytes, 1)


def walk(layers: Sequence[Sequence[Option]]) -> tuple[list[int], list[Step]]:
    """The smallest option of each layer, and the steps from there to the least error."""
    hulls = [hull(options) for options in layers]
    start = [found[0] for found in hulls]
    steps = [
        (_gain(layers[i], a, b), i, a, b)
        for i, found in enumerate(hulls)
        for a, b in itertools.pairwise(found)
    ]
    steps.sort(key=lambda step: -step[0])  # stable: a hull's own steps are in order
    nbytes = sum(layers[i][o].nbytes for i, o in enumerate(start))
    error = sum(layers[i][o].error for i, o in enumerate(start))
    walked = []
    for _, i, a, b in steps:
        nbytes += layers[i][b].nbytes - layers[i][a].nbytes
        error += layers[i][b].error - layers[i][a].error
        walked.append(Step(i, b, nbytes, max(error, 0.0)))
    return start, walked


def within_bytes(
    layers: Sequence[Sequence[Option]], limit: int, others: Sequence[Sequence[int]] = ()
) -> list[int] | None:
    """The option of each layer with the least error in ``limit`` bytes; None: none fits.

    Starts from the walk's last point that fits, and from ``others`` (all layers alike, say), spends
    what each leaves over, and takes the best: never worse than one of ``others`` that fits.
    """
    chosen, steps = walk(layers)
    for step in steps:
        if step.nbytes > limit:
            break
        chosen[step.layer] = step.option
    starts = [chosen, *map(list, others)]
    fitting = [start for start in starts if _sum(layers, start).nbytes <= limit]
    best: list[int] | None = None
    for start in fitting:
        if best is None or _sum(layers, start).error < _sum(layers, best).error:
            best = _fill(layers, start, limit)
    return best


def _fill(layers: Sequence[Sequence[Option]], chosen: list[int], limit: int) -> list[int]:
    """Change single layers for the better while bytes are left, by falling gain a byte."""
    left = limit - _sum(layers, chosen).nbytes
    while True:
        best: tuple[float, int, int] | None = None
        for i, options in enumerate(layers):
            now = options[chosen[i]]
            for o, option in enumerate(options):
                more = option.nbytes - now.nbytes
                if option.error < now.error and more <= left:
                    gain = (now.error - option.error) / max(more, 1)
                    if best is None or gain > best[0]:
                        best = gain, i, o
        if best is None:
            return chosen
        _, i, o = best
        left -= layers[i][o].nbytes - layers[i][chosen[i]].nbytes
        chosen[i] = o


def _sum(layers: Sequence[Sequence[Option]], chosen: Sequence[int]) -> Option:
    picked = [options[i] for options, i in zip(layers, chosen, strict=True)]
    return Option(sum(o.nbytes for o in picked), sum(o.error for o in picked))


def within_error(layers: Sequence[Sequence[Option]], limit: float) -> list[int] | None:
    """The option of each layer with the fewest bytes at a sum of errors of at most ``limit``."""
    chosen, steps = walk(layers)
    error = sum(layers[i][o].error for i, o in enumerate(chosen))
    for step in steps:
        if error <= limit:
            return chosen
        error = step.error
        chosen[step.layer] = step.option
    return chosen if error <= limit * (1 + 1e-9) else None
