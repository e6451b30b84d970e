"""The nodes' help pages in every language, and the example workflows: whole, pictured, light."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from roundsmith import dev

DOCS = dev.ROOT / "web" / "docs"
WORKFLOWS = sorted((dev.ROOT / "workflows").glob("*.json"))
NODES = sorted(path.stem for path in DOCS.glob("*.md"))
RECIPE = {"en": "In three lines", "zh": "三步完成"}
NAMED = (
    *("quantize-and-sample", "calibrate-quantize-compare", "load-mixed-formats"),
    *("quantize-text-encoder", "bake-loras-and-quantize", "plan-to-a-budget"),
    *("repair-and-convert-an-old-checkpoint", "make-hybrid-mxfp8", "error-lora"),
)


def page(node: str, language: str) -> str:
    """The page as the frontend finds it: English where a language has none of its own."""
    path = DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"
    return path.read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    """What is under each heading of the second rank; what is above the first under ``""``."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


@pytest.mark.parametrize("language", RECIPE)
@pytest.mark.parametrize("node", NODES)
def test_a_page_has_a_picture_and_a_recipe_of_three_lines(node: str, language: str) -> None:
    text = page(node, language)
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures == [f"pictures/{node}.webp"], "relative to docs/ in any language"
    recipe = sections(text)[RECIPE[language]]
    assert re.findall(r"^(\d+)\. ", recipe, flags=re.MULTILINE) == ["1", "2", "3"]


@pytest.mark.parametrize("node", NODES)
def test_a_translated_page_leaves_nothing_out(node: str) -> None:
    first, second = page(node, "en"), page(node, "zh")
    rows, translated = (re.findall(r"^\|", text, flags=re.MULTILINE) for text in (first, second))
    assert len(rows) == len(translated), "rows of tables"
    assert len(sections(first)) == len(sections(second)), "headings"


@pytest.mark.parametrize("node", NODES)
def test_the_picture_of_a_node_is_light(node: str) -> None:
    path = DOCS / "pictures" / f"{node}.webp"
    assert path.stat().st_size < 25_000
    with Image.open(path) as picture:
        assert picture.width > 250 and picture.height > 80


def test_no_picture_is_left_over() -> None:
    assert {path.stem for path in (DOCS / "pictures").iterdir()} == set(NODES)


def test_every_kind_of_work_has_a_workflow() -> None:
    assert {path.stem for path in WORKFLOWS} >= set(NAMED)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_a_light_picture_and_says_what_to_change(path: Path) -> None:
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < 60_000
    with Image.open(picture) as opened:
        assert opened.width == opened.height, "the template browser shows it on a square"
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    notes = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert any(re.search(r"\*\*Your own (model|file):\*\*", note) for note in notes)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_nodes_of_a_workflow_lie_on_each_other(path: Path) -> None:
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    title = 30
    boxes = [
        (n["pos"][0], n["pos"][1] - title, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1])
        for n in nodes
    ]
    crossing = [
        (nodes[i]["type"], nodes[j]["type"])
        for i, a in enumerate(boxes)
        for j, b in enumerate(boxes[:i])
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]
    assert crossing == []
