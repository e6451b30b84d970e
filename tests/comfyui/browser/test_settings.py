"""Settings: what new nodes start with, and a question before long runs."""

from __future__ import annotations

from roundsmith import dev

from .test_menus import inputs

QUANTIZE = "RoundsmithQuantizeModel"


def test_settings_are_for_new_nodes_only(canvas):
    """Nodes a person adds start with them; a workflow, a copy and an API prompt keep their own."""
    page = canvas.page
    canvas.setting("Roundsmith.DefaultFormat", "nvfp4")
    canvas.setting("Roundsmith.DefaultRounding", "nearest")
    canvas.setting("Roundsmith.OutputFolder", "output")
    canvas.setting("Roundsmith.NamePattern", "{name}-{rounding}")
    canvas.add(QUANTIZE)
    canvas.add("RoundsmithQuantizeFile", 600)
    canvas.add("RoundsmithSaveModel", 1100)
    page.wait_for_timeout(200)
    made = inputs(canvas, QUANTIZE)
    assert (made["format"], made["rounding"]) == ("nvfp4", "nearest")
    assert "format.convrot" not in made
    made = inputs(canvas, "RoundsmithQuantizeFile")
    assert (made["folder"], made["filename"]) == ("output", "{name}-{rounding}")
    made = inputs(canvas, "RoundsmithSaveModel")
    assert made["filename_prefix"] == "diffusion_models/{name}-{rounding}"
    canvas.load(dev.ROOT / "workflows" / "calibrate-quantize-compare.json")
    page.wait_for_timeout(300)
    kept = inputs(canvas, QUANTIZE)
    assert (kept["format"], kept["rounding"]) == ("int8_tensorwise", "auto")
    assert (kept["format.scaling"], kept["format.convrot"]) == ("row", "auto")
    assert inputs(canvas, "RoundsmithSaveModel")["filename_prefix"] == "diffusion_models/roundsmith"
    prompt = {"5": {"class_type": QUANTIZE, "inputs": {"format": "int8_tensorwise"}}}
    page.evaluate("prompt => window.app.loadApiJson(prompt, 'x')", prompt)
    page.wait_for_timeout(300)
    assert inputs(canvas, QUANTIZE)["format"] == "int8_tensorwise"

    page.keyboard.press("Control+,")
    page.get_by_text("Roundsmith", exact=True).first.click()
    page.get_by_text("Format of new Quantize nodes").wait_for(timeout=5000)
    canvas.shot("settings")
    canvas.setting("Comfy.Locale", "zh")
    page.get_by_text("新建量化节点的默认格式").wait_for(timeout=5000)
    canvas.shot("settings-zh")


def test_a_long_run_is_asked_about_once(canvas):
    """No stops it, yes lets it run, and the same step is not asked about again."""
    page = canvas.page
    canvas.load(dev.ROOT / "workflows" / "quantize-and-sample.json")
    canvas.set(canvas.node(QUANTIZE), "rounding", "nearest")
    canvas.setting("Roundsmith.ConfirmMinutes", 0.00001)
    before = len(canvas.server.get("/history"))
    page.get_by_test_id("queue-button").click()
    page.get_by_text("This will take a while").wait_for(timeout=10000)
    assert page.get_by_role("listitem").filter(has_text="Quantize Model: ").count() == 1
    canvas.shot("long-run")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_timeout(1000)
    assert len(canvas.server.get("/history")) == before
    assert not canvas.server.get("/queue")["queue_running"]
    page.get_by_test_id("queue-button").click()
    page.get_by_role("button", name="Confirm").click()
    deadline = 600
    while len(canvas.server.get("/history")) == before and deadline:
        page.wait_for_timeout(200)
        deadline -= 1
    canvas.run()
    assert page.get_by_text("This will take a while").count() == 0
