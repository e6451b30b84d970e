"""The panels of 2 000 layers: how fast they open, and the frames a second while they scroll.

    COMFYUI_DIR=~/ComfyUI python benchmarks/panels.py

A real server and headless Chromium, which draws without a GPU. Each panel is opened several times,
the first left out; then it is scrolled for three seconds, from end to end and back, under
Chromium's own trace, whose drawn frames are counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from in_browser import VIEW, comfyui_and_chromium
from in_comfyui import restart_in_comfyui
from plan_route import write_model

OPEN_MS = 300
FRAMES = 50
TIMES = 5

# Presses a button and waits for the panel's first row with its text and the frame after it.
OPEN = """async ([press, row]) => {
    const frame = () => new Promise(requestAnimationFrame);
    const began = performance.now();
    if (press === "pick") {
        const node = window.app.rootGraph.nodes.find(n => n.widgets?.some(w => w.name === PICK));
        node.widgets.find(w => w.name === PICK).callback();
    } else {
        document.querySelector(press).click();
    }
    while (!document.querySelector(row)?.textContent) await frame();
    await frame();
    return performance.now() - began;
}""".replace("PICK", '"roundsmith_pick"')

SCROLL = """async panel => {
    const began = performance.now();
    for (let now = 0; now < 3000; now = performance.now() - began) {
        const turn = (now / 1500) % 2;
        const list = document.querySelector(panel);
        list.scrollTop = (turn < 1 ? turn : 2 - turn) * list.scrollHeight;
        await new Promise(requestAnimationFrame);
    }
    return (performance.now() - began) / 1000;
}"""


def traced(browser: Any, page: Any, panel: str) -> float:
    """Frames drawn a second while ``panel`` is scrolled."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        categories = ["disabled-by-default-devtools.timeline.frame", "devtools.timeline.frame"]
        browser.start_tracing(page=page, path=str(path), categories=categories)
        seconds = page.evaluate(SCROLL, panel)
        browser.stop_tracing()
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
    return float(sum(event["name"] == "DrawFrame" for event in events) / seconds)


def measure(what: str, browser: Any, page: Any, press: str, row: str, panel: str) -> bool:
    """Open and scroll one panel, print both; whether the bars were met."""
    times = []
    for _ in range(TIMES + 1):
        times.append(page.evaluate(OPEN, [press, row]))
        page.keyboard.press("Escape")
        page.wait_for_timeout(700)
    page.evaluate(OPEN, [press, row])
    page.wait_for_timeout(1000)
    frames = [traced(browser, page, panel) for _ in range(TIMES)]
    page.keyboard.press("Escape")
    page.wait_for_timeout(700)
    opened, rate = statistics.median(times[1:]), statistics.median(frames)
    print(
        f"{what:28} opens in {opened:4.0f} ms (worst {max(times[1:]):.0f})"
        f"  {rate:5.1f} frames a second (least {min(frames):.1f})",
        flush=True,
    )
    return opened <= OPEN_MS and rate >= FRAMES


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status says whether the bars were met."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(words)
    restart_in_comfyui()
    from roundsmith.tests.comfyui.browser.canvas import Canvas, wire
    from roundsmith.tests.comfyui.browser.test_details import show

    with comfyui_and_chromium() as (server, browser):
        models = server.base / "models" / "diffusion_models"
        models.mkdir()
        layers = write_model(models / "big.safetensors")
        page = browser.new_context(viewport=VIEW).new_page()
        canvas = Canvas(page, server)
        canvas.open()
        show(server, canvas)
        button = ".roundsmith-panel .roundsmith-button"
        page.locator(button).wait_for(timeout=10000)
        rows = "dialog .rows .row"
        passed = measure(
            "details, 2000 layers", browser, page, button, rows, ".roundsmith-table"
        )
        wire(canvas, "diffusion_models/big.safetensors")
        passed &= measure(
            f"picker, {layers} layers", browser, page, "pick", ".roundsmith-picker .result strong",
            ".roundsmith-picker .tree",
        )  # fmt: skip
    print(f"{'PASS' if passed else 'FAIL'}: at most {OPEN_MS} ms, at least {FRAMES} a second")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
