"""How many tokens a layer keeps, what that takes, and how many passes a memory budget needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...errors import RecipeError
from ..rounding.problem import MIN_TOKENS
from .histogram import BINS
from .record import HELD

CHUNK = 2**19
"""Input values looked at at a time."""

_WORKSPACE = 2**24  # bytes for the inputs in hand: as bits, the rows taken, a moment on its way


class Size(NamedTuple):
    """What one record keeps: ``rows`` tokens, and whether the others go into a second moment."""

    rows: int
    moment: bool


def size(features: int, max_tokens: int, allowed: int | None = None) -> Size:
    """What a record of inputs ``features`` wide keeps.

    A second moment holds every token, but is N² numbers: it is kept where it takes no more bytes,
    with a small sample beside it, than ``max_tokens`` tokens would.

    Args:
        features: N.
        max_tokens: tokens asked for.
        allowed: tokens a budget allows; None: as many as asked for.
    """
    allowed = max_tokens if allowed is None else min(allowed, max_tokens)
    beside = min(HELD, max(max_tokens // 4, 1))
    moment = 2 * features + beside <= allowed
    return Size(beside if moment else allowed, moment)


def nbytes(features: int, size: Size, stored: bool = False) -> int:
    """Bytes of memory of a record; ``stored``: its tokens are in a file."""
    small = 12 * features + 8 * BINS
    rows = 0 if stored else 2 * size.rows * features
    return small + rows + (4 * features * features if size.moment else 0)


def tokens_within(
    features: Mapping[str, int], max_tokens: int, memory: int | None, stored: bool = False
) -> int:
    """The most tokens a layer, at most ``max_tokens``, that fit in ``memory`` bytes for all layers.

    Raises RecipeError where not even the fewest useful number fits.
    """
    fewest = min(MIN_TOKENS, max_tokens)
    if memory is None or _fits(features, max_tokens, max_tokens, memory, stored):
        return max_tokens
    if not _fits(features, max_tokens, fewest, memory, stored):
        needed = 2 * _total(features, max_tokens, fewest, stored)
        raise RecipeError(
            f"memory: {memory:,} bytes cannot hold the statistics of {len(features)} layers; allow "
            f"at least {needed:,}, or take fewer layers at a time"
        )
    low, high = fewest, max_tokens  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        fits = _fits(features, max_tokens, middle, memory, stored)
        low, high = (middle, high) if fits else (low, middle)
    return low


def plan_passes(
    features_by_layer: Mapping[str, int],
    max_tokens: int,
    memory: int | None,
    *,
    stored: bool = False,
    max_passes: int | None = None,
) -> list[list[str]]:
    """Groups of layers, each of which can be captured in one run of the model within ``memory``.

    Neighbours stay together, because those that are fed by one tensor share a record only within a
    pass.

    Args:
        features_by_layer: input width of each layer, in the model's order.
        max_tokens: tokens to keep of each layer. A layer that does not fit alone is a group of its
            own, and keeps fewer.
        memory: bytes; None: no limit, so one pass.
        stored: tokens go to a file, not to memory.
        max_passes: at most so many groups, of about equal size; then layers keep fewer tokens.

    Returns:
        Names of layers by pass; no pass where there are no layers.
    """
    costs = {
        name: nbytes(n, size(n, max_tokens), stored) for name, n in features_by_layer.items()
    }
    limit = sum(costs.values()) if memory is None else usable(memory)
    groups = _packed(costs, limit)
    if max_passes is not None and len(groups) > max(max_passes, 1):
        low, high = limit, sum(costs.values())
        while high - low > max(high // 100, 1):
            middle = (low + high) // 2
            enough = len(_packed(costs, middle)) <= max(max_passes, 1)
            low, high = (low, middle) if enough else (middle, high)
        groups = _packed(costs, high)
    return groups


def usable(memory: int) -> int:
    """Bytes of a budget that records may take; the rest is for the work on the inputs in hand."""
    return memory - min(_WORKSPACE, memory // 2)


def _packed(costs: Mapping[str, int], limit: int) -> list[list[str]]:
    groups: list[list[str]] = []
    filled = 0
    for name, cost in costs.items():
        if not groups or filled + cost > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += cost
    return groups


def _total(features: Mapping[str, int], max_tokens: int, allowed: int, stored: bool) -> int:
    return sum(nbytes(n, size(n, max_tokens, allowed), stored) for n in features.values())


def _fits(
    features: Mapping[str, int], max_tokens: int, allowed: int, memory: int, stored: bool
) -> bool:
    return _total(features, max_tokens, allowed, stored) <= usable(memory)
