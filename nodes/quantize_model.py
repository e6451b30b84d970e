"""Quantize Model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.quantizing import quantize_model
from ._format import format_input
from ._recipe import make_recipe, recipe_input, recipe_inputs
from ._result import quantized
from ._types import Calibration


class QuantizeModel(io.ComfyNode):
    """A MODEL to a quantized MODEL that runs at once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithQuantizeModel",
            display_name="Quantize Model",
            category="Roundsmith/quantize",
            description="Quantizes a loaded diffusion model; the result samples at once. LoRAs "
            "loaded before this node are baked in. Save it with Save Quantized Model.",
            search_aliases=[
                "quantize",
                "quantise",
                "int8",
                "fp8",
                "nvfp4",
                "mxfp8",
                "int4",
                "4 bit",
                "8 bit",
                "gguf",
                "gguf alternative",
                "shrink model",
                "smaller model",
                "compress model",
                "reduce vram",
                "low vram",
                "faster model",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to quantize, with its LoRAs."),
                format_input(),
                *recipe_inputs(),
                Calibration.Input(
                    "calibration",
                    optional=True,
                    tooltip="Statistics of what the layers see, from a Calibrate or Capture node. "
                    "Without them the model calibrates itself on a few short runs of its own.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoders for the prompts the model calibrates itself on. "
                    "Unconnected, it is given random and empty prompts, which is nearly as good.",
                ),
                recipe_input(),
            ],
            outputs=[
                io.Model.Output(tooltip="The quantized model."),
                io.String.Output(
                    "report", tooltip="What happened to each layer and why, as a table."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        format: dict[str, Any],
        calibration: Any = None,
        clip: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        recipe = make_recipe(format, **options)
        result, report = quantize_model(model, recipe, calibration, clip)
        return quantized((result, report.table()), report)
