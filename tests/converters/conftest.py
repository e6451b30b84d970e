"""A person's own presets must not change what these tests see."""

from __future__ import annotations

import pytest

from roundsmith.converters.preset_files import ENVIRONMENT


@pytest.fixture(autouse=True)
def _no_presets_of_the_person(monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "mine.json"))
