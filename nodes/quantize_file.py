"""Quantize File."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.files import quantize_file
from ..bridge.paths import FOLDERS, list_sources
from ..bridge.summaries import of_report
from ._format import format_input
from ._recipe import make_recipe, output_inputs, recipe_input, recipe_inputs
from ._result import brief, with_result
from ._types import Calibration


class QuantizeFile(io.ComfyNode):
    """A file to a quantized file, one tensor at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithQuantizeFile",
            display_name="Quantize File",
            category="Roundsmith/quantize",
            description="Quantizes a file into a new one without loading the model: the memory "
            "used is a few tensors. For diffusion models, text encoders and whole checkpoints.",
            search_aliases=[
                "convert",
                "quantize checkpoint",
                "convert to int8",
                "convert to fp8",
                "convert to nvfp4",
                "convert fp8 scaled",
                "fp8 scaled",
                "gguf alternative",
                "shrink model",
                "smaller model",
                "compress checkpoint",
                "smaller file",
            ],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Combo.Input(
                    "source",
                    options=list_sources(),
                    tooltip="A safetensors file from the diffusion model, text encoder or "
                    "checkpoint folder.",
                ),
                format_input(),
                io.Combo.Input(
                    "folder",
                    options=["same as source", *FOLDERS],
                    default="same as source",
                    tooltip="Where the new file goes.",
                ),
                io.String.Input(
                    "filename",
                    default="",
                    tooltip="Name of the new file, subfolders allowed. {name}, {format}, "
                    "{rounding} and {date} are filled in. Empty: {name}-{format}.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    advanced=True,
                    tooltip="Replace a file that is there already. Otherwise it is an error.",
                ),
                *recipe_inputs(),
                *output_inputs(),
                Calibration.Input(
                    "calibration",
                    optional=True,
                    tooltip="Statistics of what the layers see, from a Calibrate or Capture node "
                    "on the same model. Without them a file is rounded to nearest.",
                ),
                recipe_input(),
            ],
            outputs=[
                io.String.Output("path", tooltip="The file that was written."),
                io.String.Output(
                    "report", tooltip="What happened to each layer and why, as a table."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        source: str,
        format: dict[str, Any],
        folder: str,
        filename: str,
        overwrite: bool = False,
        calibration: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        recipe = make_recipe(format, **options)
        path, report = quantize_file(source, folder, filename, recipe, overwrite, calibration)
        result = of_report(report, file=path.name)
        text = f"{path.name}\n{brief(report)}"
        return with_result((str(path), report.table()), result, text)
