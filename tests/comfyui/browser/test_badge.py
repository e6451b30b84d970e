"""What a loader's file holds, on the loader."""

from __future__ import annotations

import json
import struct

import pytest

from roundsmith import dev
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


@pytest.fixture
def hostile(base):
    """A listed file whose name and layer are HTML; gone once the page is closed."""
    path = base / "models" / "diffusion_models" / f"{HOSTILE}.safetensors"
    yield write(path, {f"{HOSTILE}.weight": ("BF16", [4, 4], 32)})
    path.unlink()


def test_a_loader_says_what_its_file_holds(hostile, quantized, canvas):
    """Ours in its panel, stock ones in a badge; it follows the combo, and names are text."""
    ours = quantized("asym_w4a8_int8")
    canvas.reload()
    canvas.page.evaluate("() => window.app.rootGraph.clear()")
    panel = canvas.page.locator(".roundsmith-panel")
    loader = canvas.add("RoundsmithLoadDiffusionModel", 400, 200)
    stock = canvas.add("UNETLoader", 400, 500)

    canvas.set(loader, "unet_name", QUANTIZED_FILE)
    canvas.page.wait_for_function(
        "() => /int8_tensorwise/.test(document.querySelector('.roundsmith-panel').innerText)"
    )
    holds, reads = panel.inner_text().splitlines()
    assert holds.startswith("32 × int8_tensorwise + 8 × bf16 · ")
    assert reads == "stock loader ✓"
    canvas.set(stock, "unet_name", MODEL_FILE)
    canvas.page.wait_for_function(f"id => ({BADGE})(id).some(x => /40 × bf16/.test(x))", arg=stock)

    canvas.set(stock, "unet_name", ours.name)
    canvas.page.wait_for_function(f"id => ({BADGE})(id).some(x => /⚠/.test(x))", arg=stock)
    (text,) = [x for x in canvas.page.evaluate(BADGE, stock) if "⚠" in x]
    assert text.endswith("⚠ use Load Quantized Diffusion Model")
    canvas.shot("badge-classic")

    canvas.set(loader, "unet_name", hostile.name)
    canvas.page.wait_for_function(
        "() => /1 × bf16/.test(document.querySelector('.roundsmith-panel').innerText)"
    )
    assert canvas.page.evaluate("() => window.hacked") is None
    canvas.setting("Comfy.VueNodes.Enabled", True)
    warning = canvas.page.locator(".roundsmith-warning")
    warning.wait_for(timeout=5000)
    assert warning.inner_text().startswith("⚠ use Load Quantized Diffusion Model · 32 × asym")
    canvas.load(dev.ROOT / "workflows" / "load-mixed-formats.json")
    canvas.page.get_by_text("stock loader ✓ · 75 × f16 · 247 MB").wait_for(timeout=5000)
    canvas.shot("badge-vue")
