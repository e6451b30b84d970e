"""The layer picker, from the button on the node to what Run makes of it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from roundsmith.bridge import results

from .canvas import Canvas, wire

HOSTILE = "<img src=x onerror=window.hacked=1>"
DEMO = "diffusion_models/roundsmith-demo-flux-digits.safetensors"


def press_button(canvas: Canvas, node: int) -> None:
    """Click the node's button, as the mouse does."""
    x, y = canvas.page.evaluate(
        """id => {
            const { canvas } = window.app, node = window.app.rootGraph.getNodeById(id);
            const button = node.widgets.find(w => w.name === "roundsmith_pick");
            const box = canvas.canvas.getBoundingClientRect();
            const [x, y] = canvas.ds.convertOffsetToCanvas(
                [node.pos[0] + node.size[0] / 2, node.pos[1] + button.last_y + 10]);
            return [box.left + x, box.top + y];
        }""",
        node,
    )
    canvas.page.mouse.click(x, y)
    canvas.page.locator(".roundsmith-picker .result strong").wait_for(timeout=15000)


def settled(canvas: Canvas) -> None:
    """Wait until the plan of the last click is shown."""
    canvas.page.wait_for_timeout(150)
    canvas.page.locator(".roundsmith-picker .ok:enabled").wait_for(timeout=15000)


def sizes(canvas: Canvas) -> str:
    return str(canvas.page.locator(".roundsmith-picker .result strong").inner_text())


def test_mouse_a_block_and_a_kind_become_rules_that_run_uses(canvas, demo):
    recipe = wire(canvas, DEMO)
    press_button(canvas, recipe)
    page = canvas.page
    before = sizes(canvas)
    page.get_by_role("treeitem", name="single_blocks.1", exact=True).click()
    page.get_by_label("Choose a format for them…").select_option("int8_tensorwise convrot=auto")
    settled(canvas)
    assert sizes(canvas) != before, "the size follows the choice"
    page.get_by_role("button", name="Clear selection").click()
    page.locator(".kinds button", has_text="img_attn.qkv").click()
    page.get_by_label("Choose a format for them…").select_option("keep")
    settled(canvas)
    assert "unknown" in page.locator(".known").inner_text(), "nothing was measured: it says so"
    canvas.shot("picker")
    page.get_by_role("button", name="OK").click()
    text = canvas.value(recipe, "layer_rules")
    assert text.splitlines() == [
        r"int8_tensorwise convrot=auto: ^single_blocks\.1\.",
        r"keep: \.img_attn\.qkv$",
    ]
    canvas.run()
    history = list(canvas.server.get("/history").values())[-1]
    assert "30 layers quantized" in json.dumps(history["outputs"]), "32 but for the two kept"
    canvas.shot("picker-node")


def test_sensitivity_comes_from_the_last_run(canvas, demo):
    recipe = wire(canvas, DEMO)
    layers = canvas.server.post("/roundsmith/layers", {"source": DEMO})["layers"]
    rows = [
        {"name": row[0], "stored_as": "nvfp4", "executed_snr": 18 + i % 11}
        for i, row in enumerate(layers)
        if row[1]
    ]
    canvas.page.evaluate(
        """([id, report]) => {
            window.app.rootGraph.getNodeById(id).properties.roundsmith = { report };
        }""",
        [canvas.node("RoundsmithPlanQuantization"), results.keep({"rows": rows})],
    )
    press_button(canvas, recipe)
    canvas.page.get_by_role("treeitem", name="double_blocks.0", exact=True).locator(
        ".caret"
    ).click()
    assert f"for {len(rows)} layers" in canvas.page.locator(".known").inner_text()
    assert canvas.page.locator(".bar.sensitive").count() == len(
        canvas.page.locator(".row:has(.bar.quality)").all()
    )
    canvas.shot("picker-sensitivity")


def test_keyboard_a_layer_rule_gets_its_pattern(canvas, demo):
    rule = wire(canvas, DEMO, "RoundsmithLayerRule")
    press_button(canvas, rule)
    page = canvas.page
    page.keyboard.press("Home")
    for key in ("ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
    page.keyboard.press("Tab")
    page.keyboard.type("mxfp8")
    settled(canvas)
    canvas.shot("picker-rule")
    page.get_by_role("button", name="OK").press("Enter")
    assert canvas.value(rule, "match") == r"^double_blocks\.0\.img_attn\.proj$"
    assert canvas.value(rule, "format") == "mxfp8"
    press_button(canvas, rule)
    assert "Selected: 1 " in page.locator(".choose .count").inner_text()
    page.keyboard.press("Escape")
    page.locator(".roundsmith-picker").wait_for(state="detached", timeout=3000)


@pytest.fixture
def big(base):
    """2 000 layers, one of them with a name that would be a program as HTML."""
    path = base / "models" / "diffusion_models" / "many-layers.safetensors"
    shape = torch.zeros(64, 64, dtype=torch.bfloat16)
    names = [f"blocks.{i}.{kind}" for i in range(500) for kind in ("qkv", "out", "mlp.0")]
    names += [f"blocks.{i}.{HOSTILE}" for i in range(500)]
    save_file({f"{name}.weight": shape.clone() for name in names}, path)
    yield f"diffusion_models/{path.name}"
    path.unlink()


def test_many_layers_open_at_once_and_names_are_text(canvas, big):
    canvas.page.evaluate("() => window.app.reloadNodeDefs?.() ?? window.app.refreshComboInNodes()")
    recipe = wire(canvas, big)
    page = canvas.page
    page.evaluate("() => import('/extensions/roundsmith/app/picker.mjs')")
    press_button(canvas, recipe)
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    took = page.evaluate(
        """async id => {
            const { pick } = await import('/extensions/roundsmith/app/picker.mjs');
            const began = performance.now();
            const opening = pick(window.app.rootGraph.getNodeById(id));
            while (!document.querySelector('.roundsmith-picker[open]')) {
                await new Promise(requestAnimationFrame);
            }
            const open = performance.now() - began;
            await opening;
            return [open, performance.now() - began];
        }""",
        recipe,
    )
    print(f"\nopen in {took[0]:.0f} ms, with a plan of 2000 layers in {took[1]:.0f} ms")
    assert took[0] < 300
    assert took[1] < 3000, "a machine that does much else besides is given ten times the 300 ms"
    page.locator(".roundsmith-picker .tree").hover()
    page.mouse.wheel(0, 20000)
    page.wait_for_timeout(200)
    page.locator(".roundsmith-picker .row", has_text="blocks.499").wait_for(timeout=5000)
    page.locator(".roundsmith-picker input[type=search]").fill("blocks.7 img")
    assert page.get_by_role("treeitem", name=HOSTILE).count() > 0
    rows = page.locator(".roundsmith-picker .row").count()
    assert rows < 80, "rows that are not seen are not made"
    assert page.evaluate("() => window.hacked") is None
    assert page.locator(".roundsmith-picker img").count() == 0
    canvas.shot("picker-many")
