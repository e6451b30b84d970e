"""Latents as pictures: decoded by a VAE, or as ComfyUI's previews approximate them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOST = 4
"""Pictures of a batch, or frames of a video, that are shown."""


def pictures_of(
    model: Any, reference: Any, quantized: Any, vae: Any = None
) -> tuple[Tensor, Tensor] | None:
    """Pictures of two latents, each ``[B, H, W, 3]`` in 0..1 on the CPU; all of them with a VAE.

    Without one they are approximate, and None where the model's latents have no approximation.
    """
    latents = [_first(samples) for samples in (reference, quantized)]
    if vae is not None:
        first, second = (_flat(vae.decode(samples)) for samples in latents)
        return first, second
    first, second = (_approximate(model, samples) for samples in latents)
    return None if first is None or second is None else (first, second)


def shown(pictures: Tensor) -> Tensor:
    """At most :data:`MOST` of ``[B, H, W, 3]``, spread evenly."""
    count = len(pictures)
    if count <= MOST:
        return pictures
    return pictures[[round(i * (count - 1) / (MOST - 1)) for i in range(MOST)]]


def _first(samples: Any) -> Tensor:
    """The latent of the pictures, where there is one of sound too."""
    return samples.unbind()[0] if getattr(samples, "is_nested", False) else samples


def _flat(pictures: Tensor) -> Tensor:
    """Frames of videos as pictures of one batch; without an alpha channel."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])[..., :3]
    return flat.detach().float().cpu()


def _approximate(model: Any, samples: Tensor) -> Tensor | None:
    latent_format = model.get_model_object("latent_format")
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is None or samples.ndim not in (4, 5):
        return None
    x = model.model.process_latent_in(samples).detach().float().cpu()
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    x = x if reshape is None else reshape(x)
    if x.ndim == 5:
        x = x.movedim(2, 1).flatten(0, 1)
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    rgb = torch.nn.functional.linear(
        x.movedim(1, -1),
        torch.tensor(factors).T,
        None if bias is None else torch.tensor(bias),
    )
    return ((rgb + 1) / 2).clamp(0, 1)
