"""Calibrate (Sampler): sample as KSampler does, once a seed, and record what the layers see."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..converters.calibration import Calibration
from .influences import model_influences
from .passes import MAX_TOKENS, run_recorded
from .sampling import Callback, Latent, ksample
from .timing import measured


def calibrate_sampler(
    model: Any,
    positive: Any,
    negative: Any,
    latent: Latent,
    seeds: Sequence[int],
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    denoise: float = 1.0,
    *,
    layers: str = "",
    max_tokens: int = MAX_TOKENS,
    memory_mb: int = 0,
    influences: bool = False,
) -> tuple[Calibration, Latent]:
    """Sample with every seed, as ComfyUI's KSampler does, and record what the layers see.

    Args:
        model: a ModelPatcher; it is not changed.
        positive, negative, latent, steps, cfg, sampler_name, scheduler, denoise: as for KSampler.
        seeds: one run each.
        layers: record only layers whose name this regular expression is found in.
        max_tokens: tokens kept of each layer.
        memory_mb: megabytes the statistics may take, 0 for half of what is free; the model runs as
            often as that needs.
        influences: also measure how much each layer matters to the result, which Fit to Budget goes
            by: about two more calls of the model for each layer.

    Returns:
        The calibration, and exactly the latent that KSampler gives for the first seed.

    Raises:
        RoundsmithError: the sampler failed, or ran no layer. Nothing half-made is returned.
    """
    settings = {
        "what": "sampler",
        "seeds": list(seeds),
        "steps": steps,
        "cfg": cfg,
        "sampler": sampler_name,
        "scheduler": scheduler,
        "denoise": denoise,
    }

    def sample(seed: int, model: Any, callback: Callback) -> Latent:
        return ksample(
            *(model, seed, steps, cfg, sampler_name, scheduler),
            *(positive, negative, latent, denoise, callback),
        )

    runs = [partial(sample, seed) for seed in seeds]
    guided = 2 if cfg > 1 else 1
    with measured("sampling", model.model_size() * len(seeds) * guided * steps):
        calibration, first = run_recorded(
            *(model, runs, steps, settings),
            layers=layers,
            max_tokens=max_tokens,
            memory_mb=memory_mb,
        )
    if influences:
        calibration.influences = model_influences(model, runs[0], steps, layers)
    return calibration, first
