"""What the installed ComfyUI and comfy-kitchen have, and whether we offer it: found by probing."""

from __future__ import annotations

from comfy.quant_ops import QUANT_ALGOS
from comfy_kitchen.tensor.base import LAYOUTS

from roundsmith.bridge.operations import core_knows
from roundsmith.layouts import formats

ABSTRACT = {"TensorCoreFP8Layout"}
"""Base of ComfyUI's two FP8 layouts."""
NOT_LOADED = {"TensorCoreAWQW4A16Layout", "TensorCoreSVDQuantW4A4Layout"}
"""comfy-kitchen runs them, but no ComfyUI names a format of theirs, and no file does."""


def test_every_format_comfyui_loads_is_offered():
    """A new one in a newer ComfyUI fails here."""
    assert not set(QUANT_ALGOS) - set(formats())


def test_layouts_that_nothing_loads_are_not_offered():
    """Fails when ComfyUI begins to load one of them: then there is a format to add."""
    theirs = {name for name in LAYOUTS if not name.startswith("Roundsmith")} - ABSTRACT
    used = {name for fmt in formats().values() for name in fmt.layout_names}
    assert theirs - used == NOT_LOADED & theirs
    assert not {algo["comfy_tensor_layout"] for algo in QUANT_ALGOS.values()} & NOT_LOADED


def test_what_is_said_to_load_with_stock_comfyui_does():
    """In every ComfyUI from 0.29 on; newer ones may load more."""
    known = {name for name in formats() if core_knows(name)}
    stock = {name for name, fmt in formats().items() if fmt.stock}
    assert stock <= known
    assert known - stock <= {"asym_w4a8_int8"}
