"""A choice as rules of a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...layouts import Spec
from ..options import Rule
from .result import Chosen

TIED = ("scaling", "group_size", "convrot", "variant", "form")
"""Options of a format that a rule says beside its name."""


def rules_of(chosen: Sequence[Chosen]) -> list[Rule]:
    """One rule for each way that is used, the layers' names in its pattern."""
    by_spec: dict[Spec | None, list[str]] = {}
    for c in chosen:
        by_spec.setdefault(c.spec, []).append(c.layer)
    rules = []
    for spec, layers in by_spec.items():
        for pattern in _patterns(layers):
            if spec is None:
                rules.append(Rule(match=pattern, skip=True))
                continue
            said: dict[str, Any] = {name: getattr(spec, name) for name in TIED}
            rules.append(Rule(match=pattern, format=spec.format, **said))
    return rules


def _patterns(layers: Sequence[str], longest: int = 900) -> list[str]:
    """Patterns that match just these names, each short enough for a rule."""
    found: list[str] = []
    names: list[str] = []
    for name in map(re.escape, layers):
        if names and sum(map(len, names)) + len(names) + len(name) > longest:
            found.append(f"^(?:{'|'.join(names)})$")
            names = []
        names.append(name)
    return [*found, f"^(?:{'|'.join(names)})$"] if names else found
