"""Progress, cancel and errors on the running node."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from roundsmith.tests.models import MODEL_FILE, TEXT_ENCODER_FILE

EVIL = "<img src=x onerror=window.hacked=1>"


@pytest.fixture
def evil(server):
    """A file one of whose layers has a name that a careless page would run."""
    path = server.base / "models" / "diffusion_models" / "evil.safetensors"
    tensors = {f"{EVIL}{i}.weight": torch.randn(512, 512) for i in range(3)}
    save_file({**tensors, f"{EVIL}.nan.weight": torch.full((64, 64), torch.nan)}, path)
    yield f"diffusion_models/{path.name}"
    path.unlink()


def test_progress_cancel_and_an_error(canvas, evil):
    page = canvas.page
    node = canvas.add("RoundsmithQuantizeFile", 100, 50)
    canvas.center(node)
    values = {"source": f"diffusion_models/{MODEL_FILE}", "folder": "output", "overwrite": True,
              "rounding": "nearest", "filename": "shown"}  # fmt: skip
    for name, value in values.items():
        canvas.set(node, name, value)
    canvas.run()
    panel = page.locator(".roundsmith-panel")
    panel.wait_for(timeout=10000)
    former = panel.inner_text()
    assert "shown.safetensors" in former and "32 layers quantized" in former

    # While it runs: the layer, which of how many, the time. Cancelled with ComfyUI's own button.
    canvas.set(node, "source", f"text_encoders/{TEXT_ENCODER_FILE}")
    canvas.set(node, "filename", "cancelled")
    canvas.set(node, "scale_search", "on")
    page.get_by_test_id("queue-button").click()
    running = panel.locator(".roundsmith-progress")
    page.wait_for_function(
        "() => document.querySelector('.roundsmith-layer')?.textContent.includes('layers.')"
        " && document.querySelector('.roundsmith-progress').textContent.includes('remaining')",
        timeout=60000,
    )
    said = running.inner_text()
    assert "Quantizing" in said and " of " in said and "elapsed" in said
    page.get_by_role("button", name="Cancel current run").first.click()
    page.locator(".roundsmith-cancelled").wait_for(timeout=30000)
    assert running.count() == 0
    assert "shown.safetensors" in panel.inner_text(), "the former result is back"

    # An error says the way out, until the next run.
    canvas.set(node, "source", f"diffusion_models/{MODEL_FILE}")
    canvas.set(node, "filename", "../evil")
    canvas.run()
    error = page.locator(".roundsmith-error")
    error.wait_for(timeout=10000)
    assert "../evil" in error.inner_text() and page.locator(".roundsmith-cancelled").count() == 0
    page.keyboard.press("Escape")

    # Names out of a file are text in progress, summary, warnings and details.
    canvas.page.evaluate("() => window.app.refreshComboInNodes()")
    canvas.page.wait_for_timeout(500)
    canvas.set(node, "source", evil)
    canvas.set(node, "filename", "evil")
    page.evaluate(
        """() => {
            window.said = "";
            new MutationObserver(() => {
                window.said += document.querySelector(".roundsmith-panel").textContent;
            }).observe(
                document.querySelector(".roundsmith-panel"), { childList: true, subtree: true }
            );
        }"""
    )
    canvas.run()
    page.locator(".roundsmith-file", has_text="evil.safetensors").wait_for(timeout=10000)
    assert error.count() == 0
    assert EVIL in page.evaluate("() => window.said"), "the layer's name was shown while it ran"
    panel.locator(".roundsmith-warnings summary").click()
    assert EVIL in panel.inner_text()
    canvas.center(node)  # it grew
    panel.get_by_role("button", name="Details").click()
    rows = page.locator("dialog.roundsmith-details .rows")
    rows.wait_for(timeout=10000)
    assert EVIL in rows.inner_text()
    page.wait_for_timeout(300)
    assert page.evaluate("() => window.hacked") is None
