"""A workflow as the browser saves it, made into the prompt the browser sends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NOTES = ("MarkdownNote", "Note")
CONTROL = ("fixed", "increment", "decrement", "randomize")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"


def to_prompt(path: Path, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The API prompt of a saved workflow. Raises where a node or an input is not known."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]
        linked = {i["name"]: links[i["link"]] for i in node.get("inputs", []) if i.get("link")}
        values = iter(node.get("widgets_values") or [])
        widgets = dict(_widgets(info["input"], values, linked))
        assert next(values, None) is None, f"{path.name}: {node['type']} has a value too many"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**widgets, **linked}}
    return prompt


def _widgets(
    spec: Mapping[str, Any], values: Iterator[Any], linked: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for section in ("required", "optional"):
        for name, (kind, *rest) in spec.get(section, {}).items():
            options = rest[0] if rest else {}
            if not _has_widget(kind) or (prefix + name) in linked:
                continue
            value = next(values)
            yield prefix + name, value
            if kind == DYNAMIC:
                chosen = next(o for o in options["options"] if o["key"] == value)
                yield from _widgets(chosen["inputs"], values, linked, f"{prefix}{name}.")
            if options.get("control_after_generate"):
                assert next(values) in CONTROL


def _has_widget(kind: Any) -> bool:
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
