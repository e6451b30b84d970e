"""A graph in a few lines: what the browser makes a workflow of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NOTE = "MarkdownNote"
NOTES = Path(__file__).with_name("notes")


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        key: what others call it.
        kind: its type.
        links: input -> ``"key"`` or ``"key.1"``, the node and which of its outputs (the first).
        widgets: what is not as it comes; an option's own are ``format.scaling``.
        title: instead of its own.
        height: at least; for what it shows when it has run.
    """

    key: str
    kind: str
    links: Mapping[str, str] = field(default_factory=dict)
    widgets: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    height: int = 0


@dataclass(frozen=True)
class Column:
    """Nodes below each other, all as wide."""

    width: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Template:
    """An example workflow.

    Attributes:
        name: of the file.
        columns: from left to right.
        picture: the nodes in the template browser's picture, once it has run.
    """

    name: str
    columns: tuple[Column, ...]
    picture: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON for the browser."""
        return asdict(self)


def note(template: str, height: int = 400) -> Node:
    """The note that says what happens and what to change: ``notes/<template>.md``."""
    text = (NOTES / f"{template}.md").read_text(encoding="utf-8").strip()
    flowing = "\n\n".join(" ".join(part.split("\n")) for part in text.split("\n\n"))
    return Node("note", NOTE, widgets={"": flowing}, title="Read me, or not", height=height)
