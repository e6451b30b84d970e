"""What the browser's layer picker sends, nodes' widgets among it, as what is planned."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..bridge import planning
from ..converters import Recipe, Rule
from ..converters.rule_text import parse_lines
from ..errors import RecipeError, RoundsmithError
from ._recipe import make_recipe, make_rule

_RECIPE = frozenset(inspect.signature(make_recipe).parameters) - {"recipe", "rules", "layer_rules"}
_GROUPS = ("format", "rounding", "fallback")
_SWITCHES = ("scale_search", "full_precision_matmul")


def plan(_: Mapping[str, str], body: Mapping[str, Any]) -> str:
    """What a recipe makes of a file's layers.

    The request: ``source``; ``recipe`` (a recipe's JSON) or ``widgets`` (those of Quantization
    Recipe, by name); ``rules``, the widgets of connected Layer Rules; ``picks``, objects of
    ``choice`` and ``layers``; ``at``, which of the rules picks replace; ``report``.
    """
    widgets = _object(body, "widgets")
    settings = _object(body, "recipe")
    at = body.get("at")
    rules = [_object({"rules": item}, "rules") for item in _list(body, "rules")]
    if at is not None and (not isinstance(at, int) or not 0 <= at < len(rules)):
        raise RoundsmithError("at: the position of one of the rules is wanted")
    return planning.plan(
        planning.Asked(
            source=body.get("source", ""),
            recipe=_recipe(widgets) if widgets else Recipe(**settings),
            lines=parse_lines(str(widgets.get("layer_rules", ""))),
            rules=[_rule(item, placeholder=number == at) for number, item in enumerate(rules)],
            picks=[_pick(item) for item in _list(body, "picks")],
            report=str(body.get("report") or ""),
            at=at,
        )
    )


def _recipe(widgets: Mapping[str, Any]) -> Recipe:
    nested = _nested(widgets)
    return make_recipe(**{name: value for name, value in nested.items() if name in _RECIPE})


def _rule(widgets: Mapping[str, Any], placeholder: bool) -> Rule:
    """The rule of a Layer Rule's widgets; one whose pattern is yet to come may have none."""
    if placeholder:
        return Rule(match="^$", skip=True)
    nested = _nested(widgets)
    if not isinstance(nested.get("format"), dict):
        raise RecipeError("rules: format is missing")
    rounding = nested.get("rounding", {}).get("rounding", "as the recipe")
    switches = {name: str(nested.get(name, "")) for name in _SWITCHES}
    return make_rule(str(nested.get("match", "")), nested["format"], rounding, **switches)


def _nested(widgets: Mapping[str, Any]) -> dict[str, Any]:
    """``format`` and ``format.scaling`` as the one object nodes are called with."""
    found: dict[str, Any] = {}
    for name, value in widgets.items():
        group, _, inner = name.partition(".")
        if group in _GROUPS:
            found.setdefault(group, {})[inner or group] = value
        else:
            found[name] = value
    return found


def _pick(item: Any) -> planning.Pick:
    pick = _object({"picks": item}, "picks")
    layers = pick.get("layers")
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        raise RoundsmithError("picks: layers is a list of names")
    return planning.Pick(str(pick.get("choice")), frozenset(layers))


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = body.get(name) or {}
    if not isinstance(found, dict):
        raise RoundsmithError(f"{name}: an object is wanted")
    return found


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    found = body.get(name) or []
    if not isinstance(found, list):
        raise RoundsmithError(f"{name}: a list is wanted")
    return found


ROUTES = (
    ("GET", "/roundsmith/sources", planning.sources),
    ("POST", "/roundsmith/layers", planning.layers),
    ("POST", "/roundsmith/plan", plan),
)
