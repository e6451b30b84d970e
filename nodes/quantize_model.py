"""Quantize Model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.quantizing import quantize_model
from ._recipe import format_input, make_recipe, recipe_inputs
from ._result import brief, with_report


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
            search_aliases=["quantize", "int8", "fp8", "nvfp4", "mxfp8", "compress model"],
            inputs=[
                io.Model.Input("model", tooltip="The model to quantize, with its LoRAs."),
                format_input(),
                *recipe_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="The quantized model."),
                io.String.Output(
                    "report", tooltip="What happened to each layer and why, as a table."
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, format: dict[str, Any], **options: Any) -> io.NodeOutput:
        quantized, report = quantize_model(model, make_recipe(format, **options))
        return with_report(quantized, report.table(), brief(report))
