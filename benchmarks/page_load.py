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
from collections.abc import Sequence
from typing import Any

from in_browser import comfyui_and_chromium
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


def measure(browser: Any, url: str, kept: bool, pairs: int) -> dict[bool, list[float]]:
    """Visits with our scripts (True) and without, of one profile if ``kept``, else of new ones."""
    both: dict[bool, list[float]] = {True: [], False: []}
    profile = browser.new_context()
    for number in range(pairs + 1):
        for ours in (True, False) if number % 2 else (False, True):
            context = profile if kept else browser.new_context()
            page = context.new_page()
            took = visit(page, url, ours)
            page.close()
            if not kept:
                context.close()
            if number:  # the first pair warms the server and the profile
                both[ours].append(took)
    profile.close()
    return both


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status says whether the bar was met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=30, help="pairs of visits of each kind")
    arguments = parser.parse_args(words)
    restart_in_comfyui()
    with comfyui_and_chromium() as (server, browser):
        url = f"http://127.0.0.1:{server.port}/"
        passed = True
        for kind in ("first visit", "later visit"):
            both = measure(browser, url, kind == "later visit", arguments.repeat)
            added = [a - b for a, b in zip(both[True], both[False], strict=True)]
            low, _, high = statistics.quantiles(added, n=4)
            print(
                f"{kind:12} with {statistics.median(both[True]):6.0f} ms"
                f"  without {statistics.median(both[False]):6.0f} ms"
                f"  added {statistics.median(added):+5.0f} ms (half: {low:+.0f} … {high:+.0f})",
                flush=True,
            )
            passed &= statistics.median(added) <= BAR
    print(f"{'PASS' if passed else 'FAIL'}: at most {BAR} ms added")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
