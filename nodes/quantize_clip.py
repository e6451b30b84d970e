"""Quantize CLIP."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.quantizing import quantize_clip
from ..bridge.summaries import of_reports
from ._format import format_input
from ._recipe import make_recipe, recipe_input, recipe_inputs
from ._result import brief, with_result
from ._types import Calibration


class QuantizeCLIP(io.ComfyNode):
    """A CLIP to a quantized CLIP that runs at once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithQuantizeCLIP",
            display_name="Quantize CLIP",
            category="Roundsmith/quantize",
            description="Quantizes loaded text encoders; the result encodes at once. LoRAs loaded "
            "before this node are baked in. Save it with Save Quantized CLIP.",
            search_aliases=[
                "quantize text encoder",
                "quantize t5",
                "compress clip",
                "shrink text encoder",
                "reduce vram",
                "smaller text encoder",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders to quantize, with their LoRAs."),
                format_input(),
                *recipe_inputs(),
                Calibration.Input(
                    "calibration",
                    optional=True,
                    tooltip="Statistics of what the layers see, from a Calibrate or Capture node. "
                    "Without them the text encoders calibrate themselves on built-in text.",
                ),
                recipe_input(),
            ],
            outputs=[
                io.Clip.Output(tooltip="The quantized text encoders."),
                io.String.Output(
                    "report", tooltip="What happened to each layer and why, as a table."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, clip: Any, format: dict[str, Any], calibration: Any = None, **options: Any
    ) -> io.NodeOutput:
        quantized, reports = quantize_clip(clip, make_recipe(format, **options), calibration)
        table = "\n\n".join(f"{name}\n{report.table()}" for name, report in reports)
        summary = "\n".join(f"{name}: {brief(report)}" for name, report in reports)
        return with_result((quantized, table), of_reports(reports), summary)
