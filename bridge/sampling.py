"""Sampling as ComfyUI's KSampler does it, with a callback of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.utils

Latent = dict[str, Any]

Callback = Callable[[int, Any, Any, int], None]
"""A sampler's: step, denoised, noisy, number of steps."""


def ksample(
    model: Any,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent: Latent,
    denoise: float,
    callback: Callback,
) -> Latent:
    """What ``nodes.common_ksampler`` does; the same latent to the bit."""
    start = comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    samples = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(start, seed, latent.get("batch_index")),
        *(steps, cfg, sampler_name, scheduler, positive, negative, start),
        denoise=denoise,
        noise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    kept = {
        name: value for name, value in latent.items() if not name.startswith("downscale_ratio_")
    }
    return {**kept, "samples": samples}
