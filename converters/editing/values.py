"""Settings as people type them: JSON, a Python-like form, or ``key = value`` lines.

All of these say the same::

    {"group_size": 64, "full_precision_matrix_mult": true}
    'group_size': 64, 'full_precision_matrix_mult': True
    group_size = 64
    full_precision_matrix_mult = true
"""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

from ...errors import RecipeError

_LONGEST = 100_000  # characters
_NAMES = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ASSIGNMENT = re.compile(r"([A-Za-z_][\w.\-]*)\s*=(?!=)\s*(.*)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_][\w.\-+/]*")
_HELP = "give key = value lines, JSON, or 'key': value, …"


def parse_settings(text: str, where: str = "settings") -> dict[str, Any]:
    """Keys and JSON values from text. Raises RecipeError naming ``where`` and what is wrong."""
    text = text.strip()
    if len(text) > _LONGEST:
        raise RecipeError(f"{where}: {len(text):,} characters; at most {_LONGEST:,}")
    if not text:
        return {}
    if _ASSIGNMENT.match(text):
        found: dict[str, Any] = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            match = _ASSIGNMENT.fullmatch(line)
            if match is None:
                raise RecipeError(f"{where}: {line!r} is not key = value")
            if match[1] in found:
                raise RecipeError(f"{where}: {match[1]!r} is given twice: remove one")
            found[match[1]] = parse_value(match[2], f"{where}: {match[1]}")
        return found
    value = _parse(text if text.startswith("{") else "{" + text + "}", where)
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: {_cut(text)} is no object of keys and values; {_HELP}")
    return value


def parse_value(text: str, where: str) -> Any:
    """One value: JSON, Python-like, or a word. Raises RecipeError."""
    text = text.strip()
    if _WORD.fullmatch(text) and text not in _NAMES:
        return text
    return _parse(text, where)


def parse_keys(text: str) -> tuple[str, ...]:
    """Names of keys, separated by commas, spaces or lines; quotes are left out."""
    words = (word.strip("'\"") for word in re.split(r"[\s,]+", text))
    return tuple(dict.fromkeys(filter(None, words)))


def _parse(text: str, where: str) -> Any:
    try:
        return _checked(json.loads(text, object_pairs_hook=_unique), where)
    except RecursionError as error:
        raise RecipeError(f"{where}: nested too deeply") from error
    except _TwiceError as error:
        raise RecipeError(f"{where}: {error.args[0]!r} is given twice: remove one") from error
    except ValueError as error:
        if isinstance(error, RecipeError):
            raise
    try:
        return _checked(_literal(ast.parse(text, mode="eval").body), where)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, RecipeError):
            raise
        if isinstance(error, _TwiceError):
            raise RecipeError(f"{where}: {error.args[0]!r} is given twice: remove one") from error
        raise RecipeError(f"{where}: {_cut(text)} cannot be read; {_HELP}") from error


class _TwiceError(ValueError):
    """A key that occurs twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(key)
        found[key] = value
    return found


def _literal(node: ast.expr) -> Any:
    """The value of a literal; nothing is evaluated. Raises ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(
        node.value, (str, int, float, bool, type(None))
    ):
        return node.value
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if type(value) in (int, float):
            return -value
    if isinstance(node, ast.Dict):
        keys = [None if key is None else _literal(key) for key in node.keys]
        if all(isinstance(key, str) for key in keys):
            return _unique(list(zip(keys, map(_literal, node.values), strict=True)))  # type: ignore[arg-type]
    raise ValueError("not a literal")


def _checked(value: Any, where: str) -> Any:
    """The value, where JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where}: {value} is no JSON number")
    items = value.values() if isinstance(value, dict) else value
    for item in items if isinstance(value, (dict, list)) else ():
        _checked(item, where)
    return value


def _cut(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}…")
