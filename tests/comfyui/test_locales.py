"""What the nodes say in English is what their schemas say, and the server offers every language."""

from __future__ import annotations

from roundsmith.nodes import NODES

from .locales import english, flat, read


def test_english_is_what_the_schemas_say(base):
    """Otherwise: ``python -m roundsmith.tests.comfyui.locales`` writes it and lists what is new."""
    words, found = flat(english(NODES)), flat(read("en"))
    changed = {key for key in words.keys() | found.keys() if words.get(key) != found.get(key)}
    assert sorted(changed) == []


def test_the_server_offers_every_language(server):
    offered = server.get("/i18n")
    for language in ("en", "zh"):
        assert offered[language]["nodeDefs"].items() >= read(language).items()
