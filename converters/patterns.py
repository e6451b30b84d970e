"""The small pattern language of presets: substrings of a tensor's dotted name.

Patterns see names without the file's prefix (``model.diffusion_model.`` …):

- one that starts with a letter, a digit or ``*`` starts where a component of the name starts:
  ``time_in`` is found in ``time_in.in_layer`` and not in ``xtime_in``; ``norm`` is not found in
  ``q_norm``, ``*norm`` is;
- one that starts with ``^`` is found outside numbered blocks only: ``^proj_out`` in ``proj_out``,
  not in ``blocks.0.proj_out``; one that starts with ``_`` or ``.`` is found anywhere;
- one that ends in a digit ends its number there: ``blocks.1`` is not found in ``blocks.10``;
- ``*`` is any run of characters within a component, ``$`` is the end of the layer's name;
- ``{last}`` is the highest block index of the model: ``layers.{last}.``.

Many names are searched at once as a *blob*: one name a line.
"""

from __future__ import annotations

import re
from functools import lru_cache

_OUTSIDE_BLOCKS = r"^(?:[^\d.\n][^.\n]*\.)*?"

_BLOCKS = ("block", "blocks", "layers")  # what is worth counting


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern, for one name or a blob."""
    body, left, right = pattern, "", ""
    if body.startswith("^"):
        body, left = body[1:], _OUTSIDE_BLOCKS
    elif body[:1].isalnum() or body[:1] == "*":
        left = r"(?<![^.\n])"
    if body.endswith("$"):
        body, right = body[:-1], r"(?=(?:\.weight)?$)"
    elif body[-1:].isdigit():
        right = r"(?!\d)"
    middle = r"[^.\n]*".join(map(re.escape, body.split("*")))
    return re.compile(left + middle + right, re.MULTILINE)


def found(pattern: str, blob: str) -> bool:
    """Whether the pattern occurs in a name, or in any name of a blob."""
    return compiled(pattern).search(blob) is not None


def checked(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns; ValueError for one that is empty, would match everything, or holds a space."""
    for pattern in patterns:
        if not pattern.strip("^$*.") or any(c.isspace() for c in pattern):
            raise ValueError(f"pattern {pattern!r} is empty, matches everything or holds a space")
    return patterns


def counted(pattern: str, blob: str) -> str:
    """The pattern as evidence, with the distinct block indices after it: ``double_blocks × 19``."""
    shown = pattern.strip("^$.")
    if not pattern.endswith(_BLOCKS):
        return shown
    numbered = compiled(pattern).pattern + r"\.(?:block)?(\d+)\."
    count = len(set(re.findall(numbered, blob, re.MULTILINE)))
    return f"{shown} × {count}" if count else shown


def bound(pattern: str, blob: str) -> str:
    """The pattern with ``{last}`` replaced by the highest index that follows what precedes it."""
    head, mark, tail = pattern.partition("{last}")
    if not mark:
        return pattern
    indices = re.findall(compiled(head).pattern + r"(\d+)", blob, re.MULTILINE)
    return f"{head}{max(map(int, indices), default=0)}{tail}"
