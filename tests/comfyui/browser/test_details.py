"""The details of a result: 2 000 layers, sorted, filtered, copied; names are text, never HTML."""

from __future__ import annotations

import json

import pytest

EVIL = "<img src=x onerror=window.hacked=1>"
LAYERS = 2000
OPEN_MS = 300
FRAMES = 50


def made_up(layers: int = LAYERS) -> dict:
    """A report like one of a conversion, of a model with many layers."""
    rows = [
        {
            "name": f"blocks.{i // 20}.mlp.{i % 20}",
            "action": "keep" if i % 10 == 0 else "quantize",
            "shape": [3072, 3072],
            "stored_as": "" if i % 10 == 0 else ("mxfp8" if i % 3 else "nvfp4"),
            "reason": "kept: first of its block" if i % 10 == 0 else "",
            "bytes_before": 18_874_368,
            "bytes_after": 18_874_368 if i % 10 == 0 else 9_437_184 + i,
            "method": "" if i % 10 == 0 else "calibrated",
            "weight_snr": None if i % 10 == 0 else 30 + i % 17,
            "output_snr": None if i % 10 == 0 else 35 + i % 13,
            "executed_snr": None if i % 10 == 0 else 33 + i % 11,
            "gain": None if i % 10 == 0 else 4.5,
        }
        for i in range(layers)
    ]
    rows[7]["name"] = EVIL
    facts = {"bytes_before": 37_748_736_000, "bytes_after": 20_000_000_000, "quantized": 1800,
             "kept": 200, "executed_snr": 38.1, "methods": {EVIL: 1}, "model": EVIL}  # fmt: skip
    warnings = [f"{EVIL}: odd", "another"]
    recipe = {"format": "mxfp8", "exclude": EVIL}
    return {"kind": "quantize", "facts": facts, "warnings": warnings, "rows": rows,
            "recipe": recipe}  # fmt: skip


def show(server, canvas):
    """Put a node on the canvas whose result is the made-up report, as after loading a workflow."""
    report = made_up()
    name = "0123456789abcdef" * 2
    folder = server.base / "user" / "roundsmith" / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report), encoding="utf-8")
    node = canvas.add("RoundsmithQuantizeModel", 100, 50)
    summary = {key: report[key] for key in ("kind", "facts", "warnings")}
    graph = canvas.page.evaluate(
        """([id, result]) => {
            window.app.rootGraph.getNodeById(id).properties.roundsmith = result;
            return window.app.rootGraph.serialize();
        }""",
        [node, {**summary, "report": name, "hidden": 0}],
    )
    canvas.load(graph)
    canvas.center(canvas.node("RoundsmithQuantizeModel"))
    return canvas


@pytest.fixture
def shown(server, canvas):
    """The canvas with that node."""
    return show(server, canvas)


# Clicks, waits for the first row and the frame after it; the time in ms.
OPEN = """async () => {
    const button = document.querySelector(".roundsmith-panel .roundsmith-button");
    const frame = () => new Promise(requestAnimationFrame);
    performance.mark("details");
    button.click();
    while (!document.querySelector("dialog .rows .row")?.textContent) await frame();
    await frame();
    return performance.measure("details", "details").duration;
}"""

# Scrolls for 3 s from end to end and back: frames, and how many different rows came first.
SCROLL = """async () => {
    const table = document.querySelector(".roundsmith-table");
    const began = performance.now();
    let frames = 0, seen = new Set();
    while (performance.now() - began < 3000) {
        await new Promise(requestAnimationFrame);
        const turn = ((performance.now() - began) / 1500) % 2;
        table.scrollTop = (turn < 1 ? turn : 2 - turn) * table.scrollHeight;
        frames += 1;
        const row = document.querySelector("dialog .rows .row:not([hidden])");
        seen.add(row.textContent);
    }
    return [frames / ((performance.now() - began) / 1000), seen.size, frames];
}"""


def scrolled(page) -> tuple[float, float]:
    """Frames a second while it scrolls, and those that the page's own work leaves room for: by the
    processor time of its main thread, which does not depend on what else this machine does.
    """
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy() -> float:
        found = client.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in found if metric["name"] == "TaskDuration")

    before = busy()
    rate, seen, frames = page.evaluate(SCROLL)
    possible = frames / (busy() - before)
    client.detach()
    assert seen > 5, "rows change while it scrolls"
    return rate, possible


def copied_by(page, name: str) -> str:
    """What a button puts on the clipboard."""
    page.get_by_role("button", name=name).click()
    page.get_by_role("button", name="Copied").wait_for(timeout=5000)
    text = page.evaluate("() => navigator.clipboard.readText()")
    page.get_by_role("button", name=name).wait_for(timeout=5000)
    return str(text)


def test_two_thousand_layers(shown):
    page = shown.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".roundsmith-panel .roundsmith-button").wait_for(timeout=10000)
    times = []
    for _ in range(4):
        times.append(page.evaluate(OPEN))
        page.keyboard.press("Escape")
        page.locator("dialog.roundsmith-details").wait_for(state="detached", timeout=5000)
    assert min(times) <= OPEN_MS, times
    page.locator(".roundsmith-panel .roundsmith-button").click()
    dialog = page.locator("dialog.roundsmith-details")
    dialog.locator(".rows .row").first.wait_for(timeout=5000)
    scrolls = [scrolled(page) for _ in range(3)]
    assert max(max(both) for both in scrolls) >= FRAMES, scrolls
    assert page.locator("dialog .rows .row").count() < 100, "only what is in sight are elements"

    # Sorted by a click on a title; rows without a value last.
    page.evaluate("() => document.querySelector('.roundsmith-table').scrollTop = 0")
    title = dialog.get_by_role("columnheader", name="executed")
    title.get_by_role("button").click()
    first = dialog.locator(".rows .row[aria-rowindex='2']")
    assert "33.0 dB" in first.inner_text()
    assert title.get_attribute("aria-sort") == "ascending"
    title.get_by_role("button").click()
    assert "43.0 dB" in first.inner_text()

    # Filtered by words, by format, by a block's bar.
    assert "2000 of 2000" in dialog.locator(".count").inner_text()
    page.keyboard.press("Tab")
    dialog.get_by_role("searchbox").fill("blocks.3.")
    assert "20 of 2000" in dialog.locator(".count").inner_text()
    dialog.get_by_role("combobox").select_option(label="kept")
    assert "2 of 2000" in dialog.locator(".count").inner_text()
    assert "first of its block" in dialog.locator(".rows").inner_text()

    # Copied: what is shown.
    copied = json.loads(copied_by(page, "Copy JSON"))
    assert [row["name"] for row in copied] == ["blocks.3.mlp.0", "blocks.3.mlp.10"]
    lines = copied_by(page, "Copy CSV").split("\r\n")
    assert lines[0].startswith("name,shape,stored_as,") and len(lines) == 3
    dialog.get_by_role("searchbox").fill("")
    dialog.get_by_role("combobox").select_option(index=0)
    dialog.locator(".roundsmith-block").nth(5).click()
    count = dialog.locator(".count").inner_text()
    assert "20 of 2000" in count

    # What a file calls its layers is text, in the table, the summary, the warnings, the recipe.
    dialog.locator(".roundsmith-block").nth(5).click()
    dialog.get_by_role("searchbox").fill("onerror")
    assert EVIL in dialog.locator(".rows").inner_text()
    dialog.locator(".roundsmith-warnings summary").click()
    assert EVIL in dialog.locator(".roundsmith-warnings").inner_text()
    dialog.get_by_text("Recipe", exact=True).click()
    assert "onerror" in dialog.locator("pre").first.inner_text()
    nodes = len(page.evaluate("() => window.app.rootGraph.nodes.map(n => n.id)"))
    page.keyboard.press("Tab")
    page.keyboard.press("Delete")
    assert nodes == len(page.evaluate("() => window.app.rootGraph.nodes.map(n => n.id)"))
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached", timeout=5000)
    page.locator(".roundsmith-panel .roundsmith-warnings summary").click()
    assert EVIL in page.locator(".roundsmith-panel").inner_text()
    page.wait_for_timeout(500)
    assert page.evaluate("() => window.hacked") is None
    assert page.locator(".roundsmith-panel img, dialog img").count() == 0
