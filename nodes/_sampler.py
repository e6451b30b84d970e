"""The inputs of a sampler, shared by the nodes that sample."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io


def sampler_inputs() -> list[io.Input]:
    """Steps, guidance, sampler, schedule and denoising, as KSampler has them."""
    return [
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=10000,
            tooltip="Steps of each picture. Take as many as you work with.",
        ),
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance, as in KSampler. Above 1 both prompts count.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            default="euler",
            tooltip="The sampler. Take the one you work with.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            default="simple",
            tooltip="The noise schedule. Take the one you work with.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much of the latent is replaced, as in KSampler. 1: all of it.",
        ),
    ]
