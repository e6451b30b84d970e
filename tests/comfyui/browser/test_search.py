"""Nodes are found by the words people use."""

from __future__ import annotations

WORDS = {
    "fp8": "Quantize Model",
    "nvfp4": "Quantize Model",
    "int8": "Quantize Model",
    "gguf alternative": "Quantize Model",
    "shrink model": "Quantize Model",
    "smaller model": "Quantize Model",
    "reduce vram": "Quantize Model",
    "compress": "Quantize Model",
    "convert fp8 scaled": "Quantize File",
    "shrink text encoder": "Quantize CLIP",
    "fit vram": "Fit to Budget",
    "what is in this file": "Inspect Quantized File",
}


def test_words_people_use_find_our_nodes(canvas):
    """Typed into the search that a double click on the canvas opens."""
    page = canvas.page
    field = canvas.open_search(800, 600)
    missing = []
    for words, node in WORDS.items():
        field.fill(words)
        found = page.get_by_role("option", name=node)
        try:
            found.first.wait_for(timeout=3000)
        except Exception:
            shown = page.get_by_role("option").all_inner_texts()
            missing.append(f"{words}: {[text.splitlines()[0] for text in shown if text][:6]}")
    canvas.shot("search")
    assert not missing, "\n".join(missing)
