"""What the pack's scripts add to the load of ComfyUI's page: with and without them, by turns.

    COMFYUI_DIR=~/ComfyUI python benchmarks/page_load.py

A real server and headless Chromium. The page is opened with all extensions and, the other half of
the times, with ours struck from the list the server sends; a visit is a fresh profile's first
(nothing cached) or a later one. The time is from navigation until the frontend has set up every
extension and has its graph; the difference is of neighbours in time, so that a busy moment of the
machine touches both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from in_comfyui import restart_in_comfyui

BAR = 60
READY = """() => {
    const { app } = window;
    const run = document.querySelector("[data-testid=queue-button]");
    return app?.extensionManager && app.rootGraph && app.canvas && run && performance.now();
}"""

# Not by Playwright's routes: with those Chromium keeps no file.
STRIKE = """
    const { fetch } = window;
    window.fetch = async (...args) => {
        const answer = await fetch(...args);
        if (!String(args[0]?.url ?? args[0]).endsWith("/extensions")) {
            return answer;
        }
        const names = await answer.json();
        return Response.json(names.filter(name => !name.includes("/roundsmith/")));
    };
"""


def visit(page: Any, url: str, ours: bool) -> float:
    """Open the page; milliseconds until it is ready."""

    if not ours:
        page.add_init_script(STRIKE)
    page.goto(url, wait_until="commit")
    ready = page.wait_for_function(READY, timeout=120000, polling="raf").json_value()
    files = page.evaluate(
        "() => performance.getEntriesByType('resource')"
        ".filter(entry => entry.name.includes('/roundsmith/')).length"
    )
    assert bool(files) == ours, f"{files} of our files were loaded"
    return float(ready)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status says whether the bar was met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=30, help="pairs of visits of each kind")
    arguments = parser.parse_args(words)
    restart_in_comfyui()
    from playwright.sync_api import sync_playwright

    from roundsmith.tests.comfyui.browser.conftest import ARGUMENTS, find_chromium
    from roundsmith.tests.comfyui.client import Server

    with tempfile.TemporaryDirectory(prefix="roundsmith-benchmark-") as folder:
        base = Path(folder)
        for name in ("models", "output", "input", "temp", "custom_nodes", "user"):
            (base / name).mkdir()
        with Server(base) as server, sync_playwright() as playwright:
            server.post("/settings", {"Comfy.TutorialCompleted": True})
            url = f"http://127.0.0.1:{server.port}/"
            browser = playwright.chromium.launch(
                executable_path=find_chromium(), headless=True, args=list(ARGUMENTS)
            )
            passed = True
            for kind in ("first visit", "later visit"):
                both: dict[bool, list[float]] = {True: [], False: []}
                kept = browser.new_context()
                for number in range(arguments.repeat + 1):
                    for ours in (True, False) if number % 2 else (False, True):
                        context = kept if kind == "later visit" else browser.new_context()
                        page = context.new_page()
                        took = visit(page, url, ours)
                        page.close()
                        if context is not kept:
                            context.close()
                        if number:  # the first pair warms the server and the profile
                            both[ours].append(took)
                kept.close()
                added = [a - b for a, b in zip(both[True], both[False], strict=True)]
                print(
                    f"{kind:12} with {statistics.median(both[True]):6.0f} ms"
                    f"  without {statistics.median(both[False]):6.0f} ms"
                    f"  added {statistics.median(added):+5.0f} ms"
                    f" (half of them {' … '.join(f'{q:+.0f}' for q in quartiles(added))})",
                    flush=True,
                )
                passed &= statistics.median(added) <= BAR
            browser.close()
    print(f"{'PASS' if passed else 'FAIL'}: at most {BAR} ms added")
    return 0 if passed else 1


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third."""
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


if __name__ == "__main__":
    sys.exit(main())
