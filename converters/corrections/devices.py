"""Where to compute."""

from __future__ import annotations

import torch

from ...errors import RecipeError


def usable_device(name: str) -> torch.device:
    """The device called ``name``; ``auto``: a GPU where there is one. Raises RecipeError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"device {name!r} is not usable here ({error}); choose auto or cpu"
        ) from error
    return device
