"""A page of the running server's frontend; errors on its console fail the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .canvas import Canvas

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def find_chromium() -> str | None:
    """A Chromium: the one named by CHROMIUM, or on the PATH."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, CHROMIUMS)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; gone after each module, as Playwright's event loop runs in this thread."""
    if find_chromium() is None:
        pytest.skip("no Chromium on the PATH (or in CHROMIUM)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=find_chromium(), headless=True, args=list(ARGUMENTS)
        )
        yield running
        running.close()


@pytest.fixture
def canvas(browser: Any, server: Any, request: Any) -> Iterator[Canvas]:
    """An empty canvas of a fresh person; a screenshot is left where the test fails."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(f"{m.text} {m.location}") if _bad(m) else None)
    opened = Canvas(page, server)
    opened.open()
    yield opened
    pictures = os.environ.get("PICTURES")
    if pictures:
        page.screenshot(path=str(Path(pictures) / f"{request.node.name}.png"))
    opened.restore()
    context.close()
    assert not errors, "\n".join(errors)


def _bad(message: Any) -> bool:
    """Errors and warnings that are ours."""
    ours = "roundsmith" in f"{message.location} {message.text}".lower()
    return ours and message.type in ("error", "warning")
