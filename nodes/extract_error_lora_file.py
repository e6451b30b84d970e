"""Extract Error LoRA (Files)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.error_lora import error_lora_of_files
from ..bridge.file_tools import version_of
from ..bridge.paths import list_sources, next_output_path
from ..bridge.summaries import of_error_lora
from ..converters.corrections.error_lora_report import HOW_TO_APPLY
from ._error_lora import lora_inputs, lora_options, lora_outputs
from ._result import with_result


class ExtractErrorLoraFile(io.ComfyNode):
    """Two files, one of them quantized, to a LoRA file that corrects it; nothing is loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
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
                *lora_inputs(),
            ],
            outputs=lora_outputs(),
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
        calibration: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        path = next_output_path(filename_prefix)
        report = error_lora_of_files(
            original, quantized, path, lora_options(rank, **options), calibration
        )
        summary = f"{path.name}\n{report.summary()}"
        return with_result((str(path), report.table()), of_error_lora(report), summary)
