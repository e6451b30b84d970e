"""What a loader's file holds, on the loader."""

from __future__ import annotations

import json
import struct

from roundsmith.tests.models import MODEL_FILE, QUANTIZED_FILE

HOSTILE = "<img src=x onerror=window.hacked=1>"
BADGE = """id => window.app.rootGraph.getNodeById(id).badges
    .map(badge => typeof badge === "function" ? badge() : badge)
    .map(badge => badge.text).filter(Boolean)"""


def write(path, tensors, **metadata):
    """A safetensors file of zeros: ``{name: (dtype, shape, bytes)}``."""
    header, offset = {"__metadata__": metadata}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path


def test_a_loader_says_what_its_file_holds(canvas, quantized, base):
    """Ours in its panel, stock ones in a badge; it follows the combo, and names are text."""
    ours = quantized("asym_w4a8_int8")
    name = f"{HOSTILE}.safetensors"
    listed = base / "models" / "diffusion_models" / name
    write(listed, {f"{HOSTILE}.weight": ("BF16", [4, 4], 32)})
    canvas.reload()
    canvas.page.evaluate("() => window.app.rootGraph.clear()")
    panel = canvas.page.locator(".roundsmith-panel")
    loader = canvas.add("RoundsmithLoadDiffusionModel", 400, 200)
    stock = canvas.add("UNETLoader", 400, 500)

    canvas.set(loader, "unet_name", QUANTIZED_FILE)
    canvas.page.wait_for_function(
        "() => /int8_tensorwise/.test(document.querySelector('.roundsmith-panel').innerText)"
    )
    assert panel.inner_text().startswith("32 × int8_tensorwise + 8 × bf16 · ")
    assert panel.inner_text().endswith(" · stock loader ✓")
    canvas.set(stock, "unet_name", MODEL_FILE)
    canvas.page.wait_for_function(f"id => ({BADGE})(id).some(x => /40 × bf16/.test(x))", arg=stock)

    canvas.set(stock, "unet_name", ours.name)
    canvas.page.wait_for_function(f"id => ({BADGE})(id).some(x => /⚠/.test(x))", arg=stock)
    (text,) = [x for x in canvas.page.evaluate(BADGE, stock) if "⚠" in x]
    assert text.endswith("⚠ use Load Quantized Diffusion Model")
    canvas.shot("badge-classic")

    canvas.set(loader, "unet_name", name)
    canvas.page.wait_for_function(
        "() => /1 × bf16/.test(document.querySelector('.roundsmith-panel').innerText)"
    )
    assert canvas.page.evaluate("() => window.hacked") is None
    listed.unlink()
    canvas.setting("Comfy.VueNodes.Enabled", True)
    canvas.page.get_by_text("⚠ use Load Quantized Diffusion Model").wait_for(timeout=5000)
    canvas.shot("badge-vue")
