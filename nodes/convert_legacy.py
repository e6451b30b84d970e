"""Convert Legacy Checkpoint."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.file_tools import run_file_tool, version_of
from ..converters.migrating import MigrateOptions, migrate_file
from ..layouts import formats
from ._file_tool import changed, destination_inputs, report_outputs, source_input

_SWITCH = {"on": True, "off": False}
_TO = {
    "comfy_quant": "what ComfyUI's and Roundsmith's loaders read",
    "same": "cleaned in the layout it has",
    "fp8_scaled": "the older layout of FP8 files",
}


class ConvertLegacy(io.ComfyNode):
    """An older checkpoint into today's layout, or cleaned in its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        listing = "; ".join(f"{name}: {what}" for name, what in _TO.items())
        return io.Schema(
            node_id="RoundsmithConvertLegacy",
            display_name="Convert Legacy Checkpoint",
            category="Roundsmith/files",
            description="Shows what a quantized file is, and converts files of older tools "
            "(fp8_scaled, INT8 with scale_weight) to what today's loaders read, or cleans them in "
            "their own layout. Codes are copied as they are.",
            search_aliases=["fp8_scaled", "scaled_fp8", "scale_weight", "migrate", "repair"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                source_input(),
                io.Combo.Input(
                    "to", options=list(_TO), default="comfy_quant", tooltip=f"{listing}."
                ),
                io.String.Input(
                    "hp_filter",
                    display_name="must be high precision",
                    default="",
                    advanced=True,
                    tooltip="Stop with an error if a layer in whose name this regular expression "
                    "is found is quantized.",
                ),
                io.Combo.Input(
                    "full_precision_matmul",
                    options=["auto", "on", "off"],
                    default="auto",
                    advanced=True,
                    tooltip="Decode weights before products. auto: what the file says.",
                ),
                io.Boolean.Input(
                    "add_input_scales",
                    default=False,
                    advanced=True,
                    tooltip="Give layers that take an input scale and have none one of 1.0.",
                ),
                io.Combo.Input(
                    "format",
                    options=["detected", *formats()],
                    default="detected",
                    advanced=True,
                    tooltip="What layers are whose scales could mean several formats, for example "
                    "int8_lodewise where rows have one scale each.",
                ),
                io.Int.Input(
                    "block_size",
                    default=0,
                    min=0,
                    max=65536,
                    advanced=True,
                    tooltip="Block size of layers that could be one block or unblocked. 0: what "
                    "the scales' shapes tell.",
                ),
                io.String.Input(
                    "layers",
                    default="",
                    advanced=True,
                    tooltip="format and block size are for layers in whose name this regular "
                    "expression is found. Empty: all.",
                ),
                io.Combo.Input(
                    "marker",
                    options=["auto", "0", "1", "2"],
                    default="auto",
                    advanced=True,
                    tooltip="Elements of the marker scaled_fp8 in the older layout; 2 asks for "
                    "full-precision products.",
                ),
                *destination_inputs("migrated"),
            ],
            outputs=report_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, **_: object) -> str:
        return version_of(source)

    @classmethod
    def execute(
        cls,
        source: str,
        to: str = "comfy_quant",
        hp_filter: str = "",
        full_precision_matmul: str = "auto",
        add_input_scales: bool = False,
        format: str = "detected",
        block_size: int = 0,
        layers: str = "",
        marker: str = "auto",
        **destination: Any,
    ) -> io.NodeOutput:
        options = MigrateOptions(
            to=to,
            hp_filter=hp_filter.strip() or None,
            full_precision_matrix_mult=_SWITCH.get(full_precision_matmul),
            add_input_scales=add_input_scales,
            format=None if format == "detected" else format,
            block_size=block_size or None,
            layers=layers.strip() or None,
            marker=None if marker == "auto" else int(marker),
        )
        report = run_file_tool(migrate_file, source, options, label="migrated", **destination)
        return changed(report)
