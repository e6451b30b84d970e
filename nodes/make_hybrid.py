"""Make Hybrid MXFP8."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.file_tools import run_file_tool, version_of
from ..bridge.paths import list_sources, resolve_source
from ..converters.hybrid import HybridOptions, make_hybrid
from ._file_tool import changed, destination_inputs, layers_input, report_outputs, source_input


class MakeHybrid(io.ComfyNode):
    """An MXFP8 file with FP8 scales beside."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithMakeHybrid",
            display_name="Make Hybrid MXFP8",
            category="Roundsmith/files",
            description="Gives the layers of an MXFP8 file an FP8 scale, by which GPUs without "
            "MXFP8 run them. Codes are copied as they are.",
            search_aliases=["hybrid_mxfp8", "weight_scalar", "mxfp8 on rtx 40"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                source_input(),
                io.DynamicCombo.Input(
                    "scalar",
                    options=[
                        io.DynamicCombo.Option("largest", []),
                        io.DynamicCombo.Option("tight", []),
                        io.DynamicCombo.Option(
                            "import",
                            [
                                io.Combo.Input(
                                    "file",
                                    options=list_sources(),
                                    tooltip="A tensorwise FP8 file of the same model.",
                                )
                            ],
                        ),
                    ],
                    tooltip="largest: the largest block scale, which loses least. tight: the "
                    "largest weight over 448. import: from a tensorwise FP8 file.",
                ),
                layers_input(
                    "Only layers in whose name this regular expression is found. Empty: all."
                ),
                *destination_inputs("hybrid"),
            ],
            outputs=report_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, **_: object) -> str:
        return version_of(source)

    @classmethod
    def execute(
        cls, source: str, scalar: dict[str, Any], layers: str = "", **destination: Any
    ) -> io.NodeOutput:
        kind = scalar["scalar"]
        options = HybridOptions(
            scalar=kind,
            source=resolve_source(scalar["file"]) if kind == "import" else None,
            layers=layers.strip() or None,
        )
        return changed(run_file_tool(make_hybrid, source, options, label="hybrid", **destination))
