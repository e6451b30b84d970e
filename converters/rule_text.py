"""Rules as text that a person reads and edits: one a line, the first that matches a layer decides.

    # comments and empty lines stay as they are
    keep: ^final_layer\\.
    nvfp4: ^single_blocks\\.\\d+\\.linear1$
    int8_tensorwise convrot=auto: attn

Before the colon what the layers get, ``keep`` or a format with its settings, after it the pattern.
A JSON array of rules, as recipes hold them, is read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..errors import RecipeError
from .options import Rule

KEEP = "keep"


class Line(NamedTuple):
    """A line of the text, and the rule it holds; None: a comment or nothing."""

    text: str
    rule: Rule | None


def parse_lines(text: str, where: str = "layer_rules") -> list[Line]:
    """The lines of a text. Raises :class:`RecipeError` naming ``where`` and the line."""
    if text.lstrip().startswith("["):
        return [Line(write_rule(rule), rule) for rule in _parse_json(text, where)]
    return [
        Line(line.strip(), _parse_line(line.strip(), f"{where}, line {number}"))
        for number, line in enumerate(text.splitlines(), 1)
    ]


def parse_rules(text: str, where: str = "layer_rules") -> tuple[Rule, ...]:
    """The rules of a text. Raises :class:`RecipeError` naming ``where`` and the line."""
    return tuple(line.rule for line in parse_lines(text, where) if line.rule is not None)


def write_rules(rules: Iterable[Rule]) -> str:
    """The text that :func:`parse_rules` reads back as these rules."""
    return "\n".join(map(write_rule, rules))


def write_rule(rule: Rule) -> str:
    """A rule as one line."""
    said = rule.model_dump(exclude_defaults=True)
    pattern = said.pop("match")
    first = KEEP if said.pop("skip", False) else said.pop("format", "")
    settings = [f"{name}={json.dumps(value).strip(chr(34))}" for name, value in said.items()]
    return f"{' '.join(filter(None, (first, *settings)))}: {pattern}"


def _parse_line(line: str, where: str) -> Rule | None:
    if not line or line.startswith("#"):
        return None
    asked, colon, pattern = (part.strip() for part in line.partition(":"))
    if not colon or not asked or not pattern:
        raise RecipeError(
            f"{where}: {line!r} is not SETTINGS: PATTERN, for example nvfp4: attn or keep: ^final"
        )
    settings: dict[str, Any] = {}
    for number, word in enumerate(asked.split()):
        name, sign, value = word.partition("=")
        if sign:
            settings[name] = _value(value)
        elif number == 0:
            settings.update({"skip": True} if name == KEEP else {"format": name})
        else:
            raise RecipeError(f"{where}: {word!r} is not NAME=VALUE")
    return _rule({**settings, "match": pattern}, where)


def _parse_json(text: str, where: str) -> list[Rule]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: not valid JSON ({error})") from error
    rules = []
    for number, item in enumerate(found, 1):
        if not isinstance(item, dict):
            raise RecipeError(f"{where}: rule {number} is not a JSON object")
        rules.append(_rule(item, f"{where}: rule {number}"))
    return rules


def _rule(settings: dict[str, Any], where: str) -> Rule:
    try:
        return Rule(**settings)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    except TypeError as error:  # a name that is no name
        raise RecipeError(f"{where}: a setting's name is missing") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
