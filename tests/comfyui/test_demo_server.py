"""``roundsmith demo --comfyui``: the shipped workflow in a server that the demo starts itself."""

from __future__ import annotations

import sys

import torch
from PIL import Image

from roundsmith import dev
from roundsmith.converters.demo import ORIGINAL, run_demo
from roundsmith.converters.demo_comfyui import run_demo_comfyui
from roundsmith.tests.models import text


def test_the_demo_in_comfyui_agrees_with_the_demo_without(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    monkeypatch.setattr(text, "PROMPTS", text.PROMPTS[3:5])
    comfyui = dev.find_comfyui()
    formats = ["nvfp4", "float8_e4m3fn_rowwise"]  # the second is none of ComfyUI's own
    there = run_demo_comfyui(tmp_path / "there", comfyui, formats, steps=4)
    here = run_demo(tmp_path / "here", formats, steps=4)
    assert [row.name for row in there.rows] == [ORIGINAL, *formats]
    for one, other in zip(there.rows[1:], here.rows[1:], strict=True):
        assert (one.bytes, one.bits, one.stock) == (other.bytes, other.bits, other.stock)
        assert abs(one.snr - other.snr) < (8 if torch.cuda.is_available() else 1.5)
    with Image.open(there.grid) as one, Image.open(here.grid) as other:
        assert one.size == other.size
