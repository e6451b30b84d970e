"""Regular expressions from strangers, searched in layers' names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from time import perf_counter

import regex

from ..errors import RecipeError

_MAX_PATTERN = 1000
_MATCH_SECONDS = 0.5
_left: ContextVar[list[float] | None] = ContextVar("seconds left for patterns", default=None)


def check_pattern(pattern: str) -> str:
    """Return ``pattern`` if it compiles and is of sane length. Raises ValueError naming it."""
    if len(pattern) > _MAX_PATTERN:
        raise ValueError(f"pattern of {len(pattern)} characters; at most {_MAX_PATTERN}")
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"bad regular expression {pattern!r}: {error}") from error
    return pattern


def search_pattern(pattern: str, layer: str) -> bool:
    """Whether ``pattern`` is found in a layer's name.

    Patterns may come from a stranger's workflow: one that backtracks without end raises
    :class:`RecipeError` after half a second.
    """
    return _bounded("search", pattern, layer)


def match_pattern(pattern: str, layer: str) -> bool:
    """Whether ``pattern`` is all of a layer's name; bounded as :func:`search_pattern`."""
    return _bounded("fullmatch", pattern, layer)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """All patterns together take at most ``seconds`` inside; the one that takes longer raises
    :class:`RecipeError`."""
    token = _left.set([seconds])
    try:
        yield
    finally:
        _left.reset(token)


@lru_cache(maxsize=1 << 16)
def _bounded(how: str, pattern: str, layer: str) -> bool:
    left = _left.get()
    limit = _MATCH_SECONDS if left is None else max(min(_MATCH_SECONDS, left[0]), 1e-3)
    began = perf_counter()
    try:
        return getattr(_compiled(pattern), how)(layer, timeout=limit) is not None
    except TimeoutError as error:
        raise RecipeError(
            f"pattern {pattern!r} takes too long on {layer!r}: avoid a repeated group inside a "
            "repeated group"
        ) from error
    finally:
        if left is not None:
            left[0] -= perf_counter() - began


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern)
