"""Extract Error LoRA (Files)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.error_lora import error_lora_of_files
from ..bridge.file_tools import version_of
from ..bridge.paths import list_sources, next_output_path
from ..converters.corrections import ErrorLoraOptions
from ..converters.corrections.error_lora_report import HOW_TO_APPLY
from ._result import with_report
from ._types import Calibration


class ExtractErrorLoraFile(io.ComfyNode):
    """Two files, one of them quantized, to a LoRA file that corrects it; nothing is loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        fields = ErrorLoraOptions.model_fields
        return io.Schema(
            node_id="RoundsmithExtractErrorLoraFile",
            display_name="Extract Error LoRA (Files)",
            category="Roundsmith/files",
            description="Writes a small LoRA that takes back part of what quantization cost, from "
            f"two files, one layer in memory at a time. {HOW_TO_APPLY}",
            search_aliases=["error correction lora", "lora from quantization error", "qlora"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Combo.Input(
                    "original", options=list_sources(), tooltip="The model before, in any format."
                ),
                io.Combo.Input(
                    "quantized", options=list_sources(), tooltip="The same model, quantized."
                ),
                io.Int.Input(
                    "rank",
                    default=fields["rank"].default,
                    min=1,
                    max=1024,
                    tooltip="Rank of each layer's correction. Higher takes back more and makes a "
                    "larger file.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/roundsmith-error",
                    tooltip="Name of the file inside the output folder; a number is added.",
                ),
                io.Combo.Input(
                    "layers",
                    options=["all", "selected"],
                    default="all",
                    advanced=True,
                    tooltip="all: every quantized layer. selected: those of the first block whose "
                    "sides are of like length, as older tools choose.",
                ),
                io.String.Input(
                    "target",
                    default="",
                    advanced=True,
                    tooltip="Only layers in whose name this regular expression is found.",
                ),
                Calibration.Input(
                    "calibration",
                    optional=True,
                    tooltip="Statistics of what the layers see: the outputs' error is minimised "
                    "with them, the weights' without.",
                ),
            ],
            outputs=[
                io.String.Output("path", tooltip="The file that was written."),
                io.String.Output("report", tooltip="What it corrects, as a table."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, original: str, quantized: str, **_: object) -> str:
        return f"{version_of(original)} {version_of(quantized)}"

    @classmethod
    def execute(
        cls,
        original: str,
        quantized: str,
        rank: int,
        filename_prefix: str,
        layers: str = "all",
        target: str = "",
        calibration: Any = None,
    ) -> io.NodeOutput:
        options = ErrorLoraOptions(rank=rank, layers=layers, target=target.strip() or None)
        path = next_output_path(filename_prefix)
        report = error_lora_of_files(original, quantized, path, options, calibration)
        return with_report(str(path), report.table(), f"{path.name}\n{report.summary()}")
