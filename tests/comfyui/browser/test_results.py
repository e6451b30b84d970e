"""Results on the nodes."""

from __future__ import annotations

import pytest

from roundsmith import dev

# Where the panel's last line and the node end, in pixels of the page.
ENDS = """id => {
    const { canvas } = window.app, node = window.app.rootGraph.getNodeById(id);
    const box = canvas.canvas.getBoundingClientRect();
    const end = canvas.ds.convertOffsetToCanvas([0, node.pos[1] + node.size[1]])[1] + box.top;
    const within = document.querySelector(".roundsmith-summary").closest(".roundsmith-inner");
    const panel = within.parentElement.getBoundingClientRect();
    const inner = within.getBoundingClientRect();
    return [inner.bottom, panel.bottom, end];
}"""


def inside(canvas, node):
    """Nothing of the panel is cut off, and it does not stick out of its node."""
    inner, panel, end = canvas.page.evaluate(ENDS, node)
    assert inner <= panel + 1 and panel <= end + 1, (inner, panel, end)


def setting(canvas, name, value):
    canvas.page.evaluate(
        "([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value]
    )
    canvas.page.wait_for_timeout(1000)


@pytest.fixture
def afterwards(canvas):
    """Settings are the server's: back to what they were."""
    yield
    setting(canvas, "Comfy.VueNodes.Enabled", False)
    setting(canvas, "Comfy.ColorPalette", "dark")


def test_a_summary_shows_on_the_node_and_survives_a_reload(canvas, afterwards):
    page = canvas.page
    canvas.load(dev.ROOT / "workflows" / "quantize-and-sample.json")
    node = canvas.node("RoundsmithQuantizeModel")
    canvas.set(node, "rounding", "nearest")
    canvas.run()
    panel = page.locator(".roundsmith-panel:has(.roundsmith-summary)")
    panel.wait_for(timeout=5000)
    said = panel.inner_text()
    assert "32 layers quantized · 24 kept" in said
    assert "37.7 MB →" in said and "dB of the weights" in said and "32 × nearest" in said
    page.wait_for_timeout(1500)  # the frontend saves its draft
    canvas.reload()
    panel.wait_for(timeout=10000)
    assert panel.inner_text() == said
    canvas.center(node)
    page.wait_for_timeout(300)
    inside(canvas, node)
    panel.get_by_role("button", name="Details").click()
    dialog = page.locator("dialog.roundsmith-details")
    dialog.wait_for(timeout=5000)
    assert "56 of 56" in dialog.inner_text()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached", timeout=5000)
    setting(canvas, "Comfy.ColorPalette", "light")
    setting(canvas, "Comfy.VueNodes.Enabled", True)
    panel.wait_for(timeout=5000)
    assert panel.inner_text() == said, "the same in nodes made by Vue"
    inside(canvas, node)
