"""A workflow as the browser saves it, turned into the prompt that ComfyUI's server runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from ..errors import RoundsmithError

Prompt = dict[str, dict[str, Any]]
_MUTED, _BYPASSED = 2, 4
_CHOICE = "COMFY_DYNAMICCOMBO_V3"
_WITH_WIDGET = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", _CHOICE)
_AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """Turn a saved graph into an API-format prompt.

    Args:
        workflow: the graph: nodes, links, widget values. Subgraphs are not supported.
        object_info: the server's description of its nodes.

    Raises:
        RoundsmithError: a node that the server does not have.
    """
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if node.get("mode", 0) in (_MUTED, _BYPASSED) or kind in ("Note", "MarkdownNote"):
            continue
        if kind not in object_info:
            raise RoundsmithError(f"this ComfyUI has no node {kind!r}; is Roundsmith in it?")
        inputs = _widget_values(node, object_info[kind])
        for socket in node.get("inputs", []):
            if socket.get("link") in links:
                source, slot = links[socket["link"]]
                inputs[socket["name"]] = [source, slot]
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The values of a node's widgets by name; a seed is followed by what happens to it."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    sockets = node.get("inputs", [])
    names = [socket["widget"]["name"] for socket in sockets if "widget" in socket]
    if not names:
        known = {socket["name"] for socket in sockets}
        return dict(_by_schema(info["input"], iter(values), known))
    named: dict[str, Any] = {}
    rest = list(values)
    for name in names:
        if not rest:
            break
        named[name] = rest.pop(0)
        if name in ("seed", "noise_seed") and rest and rest[0] in _AFTER_GENERATE:
            rest.pop(0)
    return named


def _by_schema(
    inputs: dict[str, Any], values: Iterator[Any], sockets: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Values named in the order the schema has its widgets; a choice brings those of its option."""
    for section in ("required", "optional"):
        for key, (kind, *rest) in inputs.get(section, {}).items():
            name, options = prefix + key, rest[0] if rest else {}
            if name in sockets or not (isinstance(kind, list) or kind in _WITH_WIDGET):
                continue
            try:
                value = next(values)
            except StopIteration:
                return
            yield name, value
            if kind == _CHOICE:
                chosen = next((o for o in options["options"] if o["key"] == value), None)
                if chosen is not None:
                    yield from _by_schema(chosen["inputs"], values, sockets, f"{name}.")
            if options.get("control_after_generate"):
                next(values, None)


def find(prompt: Prompt, *kinds: str) -> str:
    """The id of the first node of one of these kinds. Raises :class:`RoundsmithError`."""
    for name, node in prompt.items():
        if node["class_type"] in kinds:
            return name
    raise RoundsmithError(f"the workflow has no {' or '.join(kinds)} node")


def source_of(prompt: Prompt, node: str, name: str) -> str:
    """The id of the node linked to an input."""
    value = prompt[node]["inputs"].get(name)
    if not isinstance(value, list):
        kind = prompt[node]["class_type"]
        raise RoundsmithError(f"the workflow's {kind} has no link at {name!r}")
    return value[0]


def only_for(prompt: Prompt, outputs: list[str]) -> Prompt:
    """The nodes that these output nodes need, and no others."""
    wanted, queue = set[str](), list(outputs)
    while queue:
        name = queue.pop()
        if name not in wanted:
            wanted.add(name)
            values = prompt[name]["inputs"].values()
            queue += [value[0] for value in values if isinstance(value, list)]
    return {name: node for name, node in prompt.items() if name in wanted}
