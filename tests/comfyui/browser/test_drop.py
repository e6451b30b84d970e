"""Model files dropped on nodes and beside them."""

from __future__ import annotations

import json

import pytest

from roundsmith.tests.models import MODEL_FILE, QUANTIZED_FILE, TEXT_ENCODER_FILE

from .test_badge import HOSTILE, write

DROP = """([name, x, y]) => {
    const element = document.elementFromPoint(x, y);
    const data = new DataTransfer();
    for (const file of document.getElementById("hand").files) {
        data.items.add(new File([file], name ?? file.name));
    }
    const at = { bubbles: true, cancelable: true, clientX: x, clientY: y, dataTransfer: data };
    for (const kind of ["dragenter", "dragover", "drop"]) {
        element.dispatchEvent(new DragEvent(kind, at));
    }
}"""

STEPS = """count => window.app.extensionManager.workflow.activeWorkflow
    .changeTracker.activeState.nodes.length === count"""


class Hand:
    """Drops files of this machine at places of the page."""

    def __init__(self, canvas):
        self.page = canvas.page
        self.page.evaluate(
            """() => {
                const input = document.createElement("input");
                input.type = "file";
                input.id = "hand";
                input.multiple = true;
                document.body.append(input);
            }"""
        )

    def drop(self, path, x, y, name=None):
        """Let a file fall, or several, under another name if asked to."""
        paths = path if isinstance(path, list) else [path]
        self.page.locator("#hand").set_input_files([str(path) for path in paths])
        self.page.evaluate(DROP, [name, x, y])


def wait_for(canvas, node, widget, value):
    """Until a widget has the value."""
    canvas.page.wait_for_function(
        """([id, name, value]) => window.app.rootGraph.getNodeById(id)
            .widgets.find(w => w.name === name)?.value === value""",
        arg=[node, widget, value],
        timeout=30000,
    )


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_a_file_that_falls_on_a_node_is_selected(canvas, base, encoder, vue, tmp_path):
    """By name and size; one that ComfyUI does not see is told where it belongs."""
    page, models = canvas.page, base / "models"
    canvas.setting("Comfy.VueNodes.Enabled", vue)
    stock = canvas.add("UNETLoader", 100, 100)
    ours = canvas.add("RoundsmithLoadCLIP", 600, 100)
    whole = canvas.add("RoundsmithQuantizeFile", 1100, 100)
    canvas.set(stock, "unet_name", QUANTIZED_FILE)
    canvas.center(ours)
    page.wait_for_timeout(500)
    hand = Hand(canvas)
    hand.drop(models / "diffusion_models" / MODEL_FILE, *canvas.title(stock))
    wait_for(canvas, stock, "unet_name", MODEL_FILE)
    hand.drop(encoder, *canvas.title(ours))
    wait_for(canvas, ours, "files.clip_name1", TEXT_ENCODER_FILE)
    hand.drop(models / "diffusion_models" / QUANTIZED_FILE, *canvas.title(whole))
    wait_for(canvas, whole, "source", f"diffusion_models/{QUANTIZED_FILE}")

    hand.drop(encoder, *canvas.title(stock))  # a text encoder on a loader of diffusion models
    page.get_by_text("This node reads another folder").wait_for(timeout=5000)
    assert canvas.value(stock, "unet_name") == MODEL_FILE
    model = models / "diffusion_models" / MODEL_FILE
    hand.drop(model, *canvas.title(stock), name="not-there.safetensors")
    message = page.get_by_text("not-there.safetensors")
    message.wait_for(timeout=5000)
    assert "a diffusion model" in message.inner_text()
    assert "models/diffusion_models" in message.inner_text()
    canvas.shot(f"drop-{'vue' if vue else 'classic'}")
    name = f"drop {HOSTILE}.safetensors"
    hostile = write(tmp_path / "x.safetensors", {f"{HOSTILE}.weight": ("BF16", [4, 4], 32)})
    hand.drop(hostile, *canvas.title(stock), name=name)
    page.get_by_text(f"{name} (of an unknown kind)").wait_for(timeout=5000)
    assert page.evaluate("() => window.hacked") is None


def test_several_files_fill_the_inputs_in_order(canvas, encoder, request):
    """From the one below the pointer on; one that came after the page was opened is found too."""
    page = canvas.page
    late = encoder.with_name("late.safetensors")
    both = canvas.add("DualCLIPLoader", 600, 300)
    late.hardlink_to(encoder)
    request.addfinalizer(late.unlink)
    hand = Hand(canvas)
    hand.drop([late, encoder], *canvas.title(both))
    wait_for(canvas, both, "clip_name1", late.name)
    wait_for(canvas, both, "clip_name2", encoder.name)
    x, y = canvas.title(both)
    row = page.evaluate("id => window.app.rootGraph.getNodeById(id).widgets[1].last_y + 10", both)
    hand.drop(late, x, y + (15 + row) * page.evaluate("() => window.app.canvas.ds.scale"))
    wait_for(canvas, both, "clip_name2", late.name)


def test_beside_nodes_a_model_becomes_a_loader_and_a_workflow_opens(canvas, base, quantized):
    """A file with a workflow in it stays ComfyUI's; one that is not known is told so."""
    page, folder = canvas.page, base / "models" / "diffusion_models"
    ours = quantized("asym_w4a8_int8")
    hand = Hand(canvas)
    hand.drop(folder / MODEL_FILE, 500, 400)
    page.wait_for_function("() => window.app.rootGraph.nodes.length === 1")
    wait_for(canvas, canvas.node("UNETLoader"), "unet_name", MODEL_FILE)
    page.wait_for_function(STEPS, arg=1)  # a step of undo it is once the frontend has seen it
    page.keyboard.press("Control+z")
    page.wait_for_function("() => window.app.rootGraph.nodes.length === 0")
    hand.drop(ours, 500, 400)
    page.wait_for_function("() => window.app.rootGraph.nodes.length === 1")
    wait_for(canvas, canvas.node("RoundsmithLoadDiffusionModel"), "unet_name", ours.name)
    hand.drop(ours, 900, 700, name="elsewhere.safetensors")
    page.get_by_text("elsewhere.safetensors").wait_for(timeout=5000)
    node = {"id": 7, "type": "UNETLoader", "pos": [0, 0]}
    graph = json.dumps({"version": 0.4, "nodes": [node], "links": []})
    saved = write(base / "saved.safetensors", {"a.weight": ("BF16", [4, 4], 32)}, workflow=graph)
    hand.drop(saved, 900, 700)
    page.wait_for_function("() => window.app.rootGraph.getNodeById(7)?.type === 'UNETLoader'")
