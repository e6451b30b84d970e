"""Calibrate (Sampler)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.calibrating import calibrate_sampler
from ._calibration import calibrated, calibration_outputs, capture_inputs
from ._sampler import sampler_inputs
from ._types import Calibration

SEEDS = 2**64


class CalibrateSampler(io.ComfyNode):
    """A MODEL's own sampling to a CALIBRATION, and its latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithCalibrateSampler",
            display_name="Calibrate (Sampler)",
            category="Roundsmith/calibrate",
            description="Samples like KSampler and records what the model's layers see, for "
            "Quantize Model to round against. Use prompts and settings like those you work with.",
            search_aliases=["calibration", "activations", "ksampler", "gptq", "record"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to calibrate, with its LoRAs. It is not changed."
                ),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Latent.Input("latent_image", tooltip="The latent to start from."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEEDS - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="The first seed. The latent that comes out is this seed's.",
                ),
                io.Int.Input(
                    "seeds",
                    display_name="number of seeds",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="How many pictures are sampled, one a seed, counted up from the first. "
                    "More show the model more of what it will meet.",
                ),
                *sampler_inputs(),
                *capture_inputs("Where they do not fit, all is sampled again for more layers."),
                io.Boolean.Input(
                    "influences",
                    display_name="which layers matter",
                    default=False,
                    optional=True,
                    tooltip="Also measure how much an error of each layer matters to the result, "
                    "for Fit to Budget: two more calls of the model for each layer.",
                ),
            ],
            outputs=[
                Calibration.Output(
                    "CALIBRATION", tooltip="What the layers see, for the quantize nodes."
                ),
                io.Latent.Output(tooltip="What KSampler gives with the first seed."),
                *calibration_outputs(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        seed: int,
        seeds: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float = 1.0,
        **options: Any,
    ) -> io.NodeOutput:
        calibration, latent = calibrate_sampler(
            model,
            positive,
            negative,
            latent_image,
            [(seed + index) % SEEDS for index in range(seeds)],
            *(steps, cfg, sampler_name, scheduler, denoise),
            **options,
        )
        return calibrated(calibration, latent)
