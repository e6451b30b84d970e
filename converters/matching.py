"""Regular expressions from strangers, searched in layers' names."""

from __future__ import annotations

from collections.abc import Callable

import regex

from ..errors import RecipeError

_MAX_PATTERN = 1000
_MATCH_SECONDS = 0.5


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
    return _bounded(regex.search, pattern, layer)


def match_pattern(pattern: str, layer: str) -> bool:
    """Whether ``pattern`` is all of a layer's name; bounded as :func:`search_pattern`."""
    return _bounded(regex.fullmatch, pattern, layer)


def _bounded(how: Callable[..., object], pattern: str, layer: str) -> bool:
    try:
        return how(pattern, layer, timeout=_MATCH_SECONDS) is not None
    except TimeoutError as error:
        raise RecipeError(
            f"pattern {pattern!r} takes too long on {layer!r}: avoid a repeated group inside a "
            "repeated group"
        ) from error
