"""Where the networks are inside a MODEL and a CLIP."""

from __future__ import annotations

from torch import nn

DIFFUSION = "diffusion_model."
"""Prefix of a MODEL's diffusion network."""


def encoder_prefixes(model: nn.Module) -> list[str]:
    """Prefixes of the networks inside a CLIP's model, as ``clip_l.transformer.``."""
    if isinstance(getattr(model, "transformer", None), nn.Module):
        return ["transformer."]
    return [
        f"{name}.transformer."
        for name, child in model.named_children()
        if isinstance(getattr(child, "transformer", None), nn.Module)
    ]
