"""Results on the nodes."""

from __future__ import annotations

from roundsmith import dev


def test_a_summary_shows_on_the_node_and_survives_a_reload(canvas):
    canvas.load(dev.ROOT / "workflows" / "quantize-and-sample.json")
    canvas.set(canvas.node("RoundsmithQuantizeModel"), "rounding", "nearest")
    canvas.run()
    panel = canvas.page.locator(".roundsmith-panel")
    panel.first.wait_for(timeout=5000)
    assert "32 layers quantized" in panel.first.inner_text()
    canvas.page.wait_for_timeout(1500)  # the frontend saves its draft
    canvas.reload()
    panel.first.wait_for(timeout=10000)
    assert "32 layers quantized" in panel.first.inner_text()
