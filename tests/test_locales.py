"""Translations: every language says everything, and says it in that language."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from roundsmith import dev
from roundsmith.tests.comfyui.locales import flat, follow

FOLDER = dev.ROOT / "locales"
ENGLISH = sorted((FOLDER / "en").glob("*.json"))
OTHERS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "en")
PLACEHOLDER = re.compile(r"\{[^{}]*\}")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
COMPILED = re.compile(r"\.(display_name|description|name)$")
"""The nodes' texts that the frontend's vue-i18n compiles; tooltips it shows as they are."""


def texts(path: Path) -> dict[str, str]:
    return flat(json.loads(path.read_text(encoding="utf-8")))


def test_there_are_english_and_chinese() -> None:
    assert "nodeDefs.json" in {path.name for path in ENGLISH}
    assert "zh" in OTHERS


@pytest.mark.parametrize("language", OTHERS)
def test_no_text_lacks_a_translation(language: str) -> None:
    files = {path.name for path in (FOLDER / language).glob("*.json")}
    assert files == {path.name for path in ENGLISH}
    for path in ENGLISH:
        words, translated = texts(path), texts(FOLDER / language / path.name)
        assert translated.keys() == words.keys(), path.name
        assert [key for key, text in translated.items() if not text.strip()] == [], path.name


@pytest.mark.parametrize("language", OTHERS)
def test_what_is_filled_in_is_filled_in_everywhere(language: str) -> None:
    """A placeholder that a translation misspells would be shown as it is, or nothing in it."""
    for path in ENGLISH:
        translated = texts(FOLDER / language / path.name)
        for key, text in texts(path).items():
            wanted = sorted(PLACEHOLDER.findall(text))
            assert sorted(PLACEHOLDER.findall(translated[key])) == wanted, f"{path.name}: {key}"


def test_chinese_is_chinese() -> None:
    """Names may be Latin (``cfg``); sentences may not have been left in English."""
    words = texts(FOLDER / "zh" / "nodeDefs.json")
    left = [k for k, text in words.items() if not k.endswith(".name") and not CHINESE.search(text)]
    assert left == []


@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_nothing_shown_is_syntax_of_the_frontend(language: str) -> None:
    """``@``, ``{}`` and ``|`` refer, fill in and choose plurals there: text would be lost."""
    words = texts(FOLDER / language / "nodeDefs.json")
    compiled = {key: text for key, text in words.items() if COMPILED.search(key)}
    assert {key: text for key, text in compiled.items() if set(text) & set("@{}|")} == {}


def test_a_translation_follows_its_schemas() -> None:
    old = {"A": {"name": "model", "tip": "the same"}, "B": {"name": "gone"}}
    zh = {"A": {"name": "模型", "tip": "一样"}, "B": {"name": "没了"}}
    new = {"A": {"name": "model", "tip": "now different"}, "C": old["A"]}
    words, missing = follow(old, new, zh)
    assert words == {"A": {"name": "模型"}, "C": {"name": "模型", "tip": "一样"}}
    assert missing == {"A.tip": "now different"}
