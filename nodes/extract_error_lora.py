"""Extract Error LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.error_lora import error_lora
from ..bridge.paths import next_output_path
from ..bridge.summaries import of_error_lora
from ..converters.corrections.error_lora_report import HOW_TO_APPLY
from ._error_lora import lora_inputs, lora_options, lora_outputs
from ._result import with_result


class ExtractErrorLora(io.ComfyNode):
    """A MODEL and its quantized twin to a LoRA file that corrects the twin."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithExtractErrorLora",
            display_name="Extract Error LoRA",
            category="Roundsmith/save",
            description="Writes a small LoRA that takes back part of what quantization cost. "
            f"{HOW_TO_APPLY}",
            search_aliases=["error correction lora", "lora from quantization error", "qlora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("original", tooltip="The model as it was. It is not changed."),
                io.Model.Input("quantized", tooltip="The same model, quantized."),
                *lora_inputs(),
            ],
            outputs=lora_outputs(),
        )

    @classmethod
    def execute(
        cls,
        original: Any,
        quantized: Any,
        rank: int,
        filename_prefix: str,
        calibration: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        path = next_output_path(filename_prefix)
        report = error_lora(original, quantized, path, lora_options(rank, **options), calibration)
        summary = f"{path.name}\n{report.summary()}"
        return with_result((str(path), report.table()), of_error_lora(report), summary)
