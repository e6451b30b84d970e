"""The nodes' words for ``locales``: ``python -m roundsmith.tests.comfyui.locales``.

Run with the interpreter that runs the tests in this folder (``.venv-comfyui``). It writes
``locales/en/nodeDefs.json`` from the schemas and puts every other language's into the same order:
what is new there is taken from where the same English words are translated already, what no schema
has is dropped, and what a person has to translate is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from roundsmith import dev

FOLDER = dev.ROOT / "locales"
FILE = "nodeDefs.json"
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"

Words = dict[str, Any]
"""Nested objects that end in texts, as ComfyUI's frontend reads them."""


def english(nodes: Iterable[Any]) -> Words:
    """What the schemas of these nodes say, under the keys the frontend looks up.

    An input of a choice is ``format_scaling``: the frontend's ``format.scaling``, dots replaced.
    Where two options explain an input of the same name differently there is no tooltip here, for
    one key can hold one only: the frontend then shows the schema's.
    """
    return {node.GET_SCHEMA().node_id: _node(node) for node in sorted(nodes, key=_node_id)}


def _node_id(node: Any) -> str:
    return str(node.GET_SCHEMA().node_id)


def _node(node: Any) -> Words:
    info = node.GET_NODE_INFO_V1()
    inputs: Words = {}
    for name, label, tooltip in _inputs(info["input"]):
        words = inputs.setdefault(name, {"name": label, "tooltip": tooltip})
        if words.get("tooltip") != tooltip:
            inputs[name] = {"name": label}
    outputs: Words = {}
    rows = zip(info["output_name"], info["output"], info["output_tooltips"], strict=True)
    for index, (name, kind, tooltip) in enumerate(rows):
        named = {} if name == kind else {"name": name}  # else the frontend names the type
        outputs[str(index)] = {**named, "tooltip": tooltip}
    words = {"display_name": info["display_name"], "description": info["description"]}
    return {**words, "inputs": inputs, **({"outputs": outputs} if outputs else {})}


def _inputs(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for section in ("required", "optional"):
        for name, (kind, *rest) in spec.get(section, {}).items():
            options = rest[0] if rest else {}
            # Of what an option adds, the frontend shows the name, whatever the schema says.
            label = name if prefix else options.get("display_name") or name
            yield f"{prefix}{name}".replace(".", "_"), label, options["tooltip"]
            for option in options["options"] if kind == DYNAMIC else ():
                yield from _inputs(option["inputs"], f"{prefix}{name}.")


def flat(words: Words, prefix: str = "") -> dict[str, str]:
    """The texts by their whole keys: ``RoundsmithQuantizeModel.inputs.model.tooltip``."""
    found: dict[str, str] = {}
    for key, value in words.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def follow(old: Words, new: Words, translated: Words) -> tuple[Words, dict[str, str]]:
    """A translation of ``old`` made one of ``new``, and the English that is still to translate.

    Texts that only moved take their translation along. What is not translated is left out.
    """
    before, known = flat(old), flat(translated)
    memory = {(_kind(key), before[key]): text for key, text in known.items() if key in before}
    missing: dict[str, str] = {}

    def walk(words: Words, prefix: str) -> Words:
        made: Words = {}
        for key, value in words.items():
            path = f"{prefix}{key}"
            if isinstance(value, dict):
                made[key] = walk(value, f"{path}.")
            elif before.get(path) == value and path in known:
                made[key] = known[path]
            elif (_kind(path), value) in memory:
                made[key] = memory[_kind(path), value]
            else:
                missing[path] = value
        return made

    return walk(new, ""), missing


def _kind(key: str) -> str:
    return key.rpartition(".")[2]


def read(language: str) -> Words:
    """The nodes' words in a language; empty where there is no file."""
    path = FOLDER / language / FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write(language: str, words: Words) -> None:
    """Write the nodes' words of a language."""
    text = json.dumps(words, indent=2, ensure_ascii=False) + "\n"
    (FOLDER / language / FILE).write_text(text, encoding="utf-8", newline="\n")


def main() -> int:
    """The command; 1 where something has to be translated."""
    from . import conftest  # makes ComfyUI importable

    print(f"ComfyUI's base directory: {conftest.BASE}")
    from roundsmith.nodes import NODES

    old, new = read("en"), english(NODES)
    write("en", new)
    status = 0
    for language in sorted(path.name for path in FOLDER.iterdir() if path.is_dir()):
        if language == "en":
            continue
        words, missing = follow(old, new, read(language))
        write(language, words)
        print(f"{language}: {len(flat(words))} texts, {len(missing)} to translate")
        for key, text in missing.items():
            print(f"  {key}\n    {text}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
