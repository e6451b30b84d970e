"""A real ComfyUI server with the pack, and headless Chromium, for benchmarks of the page."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VIEW = {"width": 1600, "height": 1000}


@contextmanager
def comfyui_and_chromium() -> Iterator[tuple[Any, Any]]:
    """A server of an empty folder, and Playwright's browser; both gone afterwards."""
    from playwright.sync_api import sync_playwright

    from roundsmith.tests.comfyui.browser.conftest import ARGUMENTS, find_chromium
    from roundsmith.tests.comfyui.client import Server

    with tempfile.TemporaryDirectory(prefix="roundsmith-benchmark-") as folder:
        for name in ("models", "output", "input", "temp", "custom_nodes", "user"):
            (Path(folder) / name).mkdir()
        with Server(Path(folder)) as server, sync_playwright() as playwright:
            server.post("/settings", {"Comfy.TutorialCompleted": True})
            browser = playwright.chromium.launch(
                executable_path=find_chromium(), headless=True, args=list(ARGUMENTS)
            )
            yield server, browser
            browser.close()
