"""A right-click on a loader."""

from __future__ import annotations

import pytest

from roundsmith import dev

WIRES = """() => Object.fromEntries(window.app.rootGraph.nodes.flatMap(node =>
    (node.inputs ?? []).map((input, i) => {
        const from = node.getInputNode(i);
        return [`${node.type}.${input.name}`, from?.type];
    }).filter(([, from]) => from)))"""
OVERLAPS = """() => {
    const boxes = window.app.rootGraph.nodes.map(n => [n.type, n.pos[0], n.pos[1] - 30,
        n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
    return boxes.flatMap((a, i) => boxes.slice(i + 1)
        .filter(b => a[1] < b[3] && b[1] < a[3] && a[2] < b[4] && b[2] < a[4])
        .map(b => `${a[0]} and ${b[0]}`));
}"""
QUANTIZE = "Quantize this model…"
CALIBRATE = "Calibrate on this workflow…"
MODEL = "UNETLoader"


def choose(canvas, node, item):
    """Right-click a node's title and choose from its menu."""
    canvas.center(node)
    canvas.page.mouse.click(*canvas.title(node), button="right")
    found = canvas.page.get_by_text(item, exact=True).last
    found.wait_for(timeout=5000)
    if item == QUANTIZE:
        canvas.shot("menu-vue" if canvas.page.locator(".lg-node").count() else "menu-classic")
    found.click()
    canvas.page.wait_for_timeout(600)


def undo(canvas, count):
    """Ctrl+Z once takes it back."""
    canvas.page.keyboard.press("Escape")
    canvas.page.keyboard.press("Control+z")
    canvas.page.wait_for_function(
        "count => window.app.rootGraph.nodes.length === count", arg=count, timeout=5000
    )


def inputs(canvas, kind):
    """Values of a node by name."""
    return canvas.page.evaluate(
        """kind => Object.fromEntries(window.app.rootGraph.nodes.find(n => n.type === kind)
            .widgets.map(w => [w.name, w.value]))""",
        kind,
    )


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_the_menu_of_a_loader(canvas, vue):
    """Each item inserts what it says, wired, apart from other nodes, undone by one Ctrl+Z."""
    canvas.setting("Comfy.UseNewMenu", "Top")
    canvas.setting("Comfy.VueNodes.Enabled", vue)
    canvas.load(dev.ROOT / "workflows" / "load-mixed-formats.json")
    plain = canvas.page.evaluate(
        """() => {
            const nodes = window.app.rootGraph.nodes;
            const ours = nodes.find(n => n.type === "RoundsmithLoadDiffusionModel");
            const stock = window.LiteGraph.createNode("UNETLoader");
            stock.pos = [ours.pos[0], ours.pos[1] - 80]; // badges take room
            window.app.rootGraph.add(stock);
            for (const id of [...ours.outputs[0].links]) {
                const { target_id, target_slot } = window.app.rootGraph.getLink(id);
                stock.connect(0, window.app.rootGraph.getNodeById(target_id), target_slot);
            }
            window.app.rootGraph.remove(ours);
            const there = nodes.find(n => n.type === "RoundsmithInspectFile");
            if (there) window.app.rootGraph.remove(there);
            window.app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
            return nodes.length;
        }"""
    )
    canvas.page.wait_for_timeout(500)
    close = canvas.page.evaluate(OVERLAPS)  # Vue nodes are larger than those they were placed as
    before = canvas.page.evaluate(WIRES)
    assert before["KSampler.model"] == MODEL

    choose(canvas, canvas.node(MODEL), QUANTIZE)
    wires = canvas.page.evaluate(WIRES)
    assert wires["RoundsmithQuantizeModel.model"] == MODEL
    assert wires["KSampler.model"] == "RoundsmithQuantizeModel"
    assert canvas.page.evaluate(OVERLAPS) == close
    undo(canvas, plain)
    assert canvas.page.evaluate(WIRES) == before

    choose(canvas, canvas.node(MODEL), CALIBRATE)
    wires = canvas.page.evaluate(WIRES)
    assert wires["RoundsmithQuantizeModel.calibration"] == "RoundsmithCalibrateSampler"
    assert wires["RoundsmithCalibrateSampler.model"] == MODEL
    assert wires["RoundsmithCompareModels.reference"] == MODEL
    assert wires["RoundsmithCompareModels.quantized"] == "RoundsmithQuantizeModel"
    assert wires["RoundsmithCompareModels.vae"] == "VAELoader"
    for name in ("positive", "negative", "latent_image"):
        for kind in ("RoundsmithCalibrateSampler", "RoundsmithCompareModels"):
            assert wires[f"{kind}.{name}"] == before[f"KSampler.{name}"]
    sampler, chain = inputs(canvas, "KSampler"), inputs(canvas, "RoundsmithCalibrateSampler")
    for name in ("steps", "cfg", "sampler_name", "scheduler", "denoise"):
        assert chain[name] == sampler[name]
    assert chain["seed"] == sampler["seed"] + 1
    assert inputs(canvas, "RoundsmithCompareModels")["seed"] == sampler["seed"]
    assert canvas.page.evaluate(OVERLAPS) == close
    canvas.page.wait_for_timeout(600)
    canvas.shot(f"calibrate-{'vue' if vue else 'classic'}")
    undo(canvas, plain)
    assert canvas.page.evaluate(WIRES) == before

    choose(canvas, canvas.node(MODEL), "Inspect this file…")
    chosen = inputs(canvas, MODEL)["unet_name"]
    assert inputs(canvas, "RoundsmithInspectFile")["source"] == f"diffusion_models/{chosen}"
    undo(canvas, plain)

    choose(canvas, canvas.node("CLIPLoader"), "Quantize this text encoder…")
    wires = canvas.page.evaluate(WIRES)
    assert wires["RoundsmithQuantizeCLIP.clip"] == "CLIPLoader"
    assert wires["CLIPTextEncode.clip"] == "RoundsmithQuantizeCLIP"
    undo(canvas, plain)


def test_checkpoints_and_custom_samplers(canvas):
    """A checkpoint's model through LoRA and guider to SamplerCustomAdvanced; its own VAE."""
    canvas.page.evaluate(
        """() => {
            const add = (kind, x, y) => {
                const node = window.LiteGraph.createNode(kind);
                node.pos = [x, y];
                window.app.rootGraph.add(node);
                return node;
            };
            const to = (from, output, node, name) =>
                from.connect(output, node, node.findInputSlot(name));
            const loader = add("CheckpointLoaderSimple", 0, 0);
            const lora = add("LoraLoaderModelOnly", 400, 0);
            const guider = add("CFGGuider", 800, 0);
            const sampler = add("SamplerCustomAdvanced", 1200, 0);
            const text = add("CLIPTextEncode", 400, 300);
            const sigmas = add("BasicScheduler", 800, 300);
            const noise = add("RandomNoise", 800, 600);
            const chosen = add("KSamplerSelect", 1200, 300);
            const latent = add("EmptyLatentImage", 400, 600);
            to(loader, 0, lora, "model"); to(loader, 1, text, "clip");
            to(lora, 0, guider, "model"); to(lora, 0, sigmas, "model");
            to(text, 0, guider, "positive"); to(text, 0, guider, "negative");
            to(noise, 0, sampler, "noise"); to(guider, 0, sampler, "guider");
            to(chosen, 0, sampler, "sampler"); to(sigmas, 0, sampler, "sigmas");
            to(latent, 0, sampler, "latent_image");
            noise.widgets[0].value = 41;
            sigmas.widgets.find(w => w.name === "steps").value = 9;
            chosen.widgets[0].value = "heun";
        }"""
    )
    choose(canvas, canvas.node("CheckpointLoaderSimple"), CALIBRATE)
    wires = canvas.page.evaluate(WIRES)
    assert wires["CFGGuider.model"] == "RoundsmithQuantizeModel"
    assert wires["RoundsmithCalibrateSampler.model"] == "LoraLoaderModelOnly"
    assert wires["RoundsmithCompareModels.vae"] == "CheckpointLoaderSimple"
    chain = inputs(canvas, "RoundsmithCalibrateSampler")
    assert (chain["seed"], chain["steps"], chain["sampler_name"]) == (42, 9, "heun")
    assert canvas.page.evaluate(OVERLAPS) == []
