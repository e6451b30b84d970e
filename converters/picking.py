"""Layers picked by hand, as short patterns that match just these.

A layer's *block* is its name up to a block's number, its *kind* the rest:
``double_blocks.3.img_attn.qkv`` is an ``img_attn.qkv`` of ``double_blocks.3``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

LONGEST = 900
_BLOCK = re.compile(r"^(?P<last>(?:.*\.)?[^.]*(?:block|layer)[^.]*\.\d+)\.(?P<kind>.*[^.\d].*)$")
_NUMBER = re.compile(r"^(?P<first>[^\d.][^.]*(?:\.[^\d.][^.]*)*\.\d+)\.(?P<kind>.*[^.\d].*)$")


class Place(NamedTuple):
    """Where a layer is: its block (its family and number), and its kind in there."""

    family: str
    number: str
    kind: str

    @property
    def block(self) -> str:
        """The block's name; "" outside blocks."""
        return f"{self.family}.{self.number}" if self.number else ""


def place(layer: str) -> Place:
    """The place of a layer by its name."""
    found = _BLOCK.match(layer) or _NUMBER.match(layer)
    if found is None:
        return Place("", "", layer)
    family, _, number = found.group(1).rpartition(".")
    return Place(family, number, found["kind"])


class _Candidate(NamedTuple):
    pattern: str
    layers: frozenset[str]
    tail: str | None = None  # what stands between ``\.`` and ``$``, where that is all


def patterns_for(chosen: Collection[str], names: Iterable[str]) -> list[str]:
    """Patterns that together match, of ``names``, just those ``chosen``.

    Whole kinds and whole families come first, then blocks, then kinds of some blocks, then names.
    """
    wanted = set(chosen)
    everything = tuple(names)
    found: list[str] = []
    tails: list[str] = []
    left = set(wanted)
    candidates = [c for c in _broad(everything) if c.layers <= wanted]
    while left and candidates:
        best = max(candidates, key=lambda c: (len(c.layers & left), -len(c.pattern)))
        gained = best.layers & left
        if len(gained) < 2:
            break
        (found if best.tail is None else tails).append(best.tail or best.pattern)
        left -= gained
        candidates = [c for c in candidates if c.layers & left]
    found += [rf"\.{tail}$" for tail in _alternatives(tails, LONGEST)]
    return [*found, *_narrow(left, everything)]


@lru_cache(maxsize=4)
def _broad(names: tuple[str, ...]) -> list[_Candidate]:
    """Patterns worth having: a kind anywhere or in a family, a family, with what they match."""
    counts: Counter[tuple[str, str | None]] = Counter()
    for name in names:
        at = place(name)
        if not at.number:
            continue
        family, kind = re.escape(at.family), re.escape(at.kind)
        tails = map(re.escape, _tails(at.kind))
        counts.update([(rf"^{family}\.", None), (rf"^{family}\.\d+\.{kind}$", None)])
        counts.update((rf"\.{tail}$", tail) for tail in tails)
    return [
        _Candidate(pattern, frozenset(n for n in names if re.search(pattern, n)), tail)
        for (pattern, tail), count in counts.items()
        if count > 1
    ]


def _tails(kind: str) -> list[str]:
    """``img_attn.qkv`` → itself, ``qkv``; tails that are only a number say too little."""
    parts = kind.split(".")
    tails = [".".join(parts[i:]) for i in range(len(parts))]
    return [tail for tail in tails if not tail.isdecimal()]


def _narrow(layers: Collection[str], names: Iterable[str]) -> list[str]:
    """Patterns for some of ``names``: whole blocks, numbers of a family and kinds that go together,
    then names."""
    kinds: dict[tuple[str, str], list[str]] = {}
    outside: list[str] = []
    for layer in sorted(layers, key=_natural):
        at = place(layer)
        if at.number:
            kinds.setdefault((at.family, at.number), []).append(at.kind)
        else:
            outside.append(re.escape(layer))
    numbers: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    others = (name for name in names if name not in layers)
    parents = {name[:i] for name in others for i, c in enumerate(name) if c == "."}
    for (family, number), some in kinds.items():
        whole = f"{family}.{number}" not in parents
        numbers.setdefault((family, () if whole else tuple(some)), []).append(number)
    found = []
    for (family, together), each in numbers.items():
        if not together:
            heads = _alternatives(each, LONGEST - len(family))
            found += [rf"^{re.escape(family)}\.{head}\." for head in heads]
        for head in _alternatives(each, LONGEST // 2 - len(family)):
            for tail in _alternatives([re.escape(kind) for kind in together], LONGEST // 2):
                found.append(rf"^{re.escape(family)}\.{head}\.{tail}$")
    found += [f"^{name}$" for name in _alternatives(outside, LONGEST)]
    return found


def _alternatives(parts: Sequence[str], longest: int) -> list[str]:
    """``a`` or ``(?:a|b)``, several where one would be too long."""
    groups: list[list[str]] = []
    for part in parts:
        if not groups or sum(map(len, groups[-1])) + len(groups[-1]) + len(part) > longest:
            groups.append([])
        groups[-1].append(part)
    return [group[0] if len(group) == 1 else f"(?:{'|'.join(group)})" for group in groups]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers as numbers."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]
