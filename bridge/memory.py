"""Room on the GPU for the engine, which ComfyUI's memory management does not know of."""

from __future__ import annotations

from collections.abc import Iterable

import comfy.model_management as mm
import torch

from ..converters import Recipe

WORKING = 2 * 1024**3
"""Bytes the engine takes besides a layer: what its workers hold, and torch's own."""


def make_room(recipe: Recipe, shapes: Iterable[tuple[int, ...]]) -> None:
    """Have ComfyUI move models off the GPU the engine is about to use; nothing on a CPU.

    Args:
        recipe: says where the engine will run.
        shapes: of the weights; the largest one, in float32, has to fit.
    """
    device = _engine_device(recipe.device)
    if device is not None:
        largest = max((torch.Size(shape).numel() for shape in shapes if len(shape) == 2), default=0)
        mm.free_memory(WORKING + largest * torch.float32.itemsize, device)


def _engine_device(name: str) -> torch.device | None:
    """The GPU the engine will take, numbered as ComfyUI's devices are; None for any other."""
    if not torch.cuda.is_available() or not (name == "auto" or name.startswith("cuda")):
        return None
    device = torch.device("cuda" if name == "auto" else name)
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", index)
