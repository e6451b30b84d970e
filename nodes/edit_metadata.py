"""Edit Quant Metadata."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.file_tools import run_file_tool, version_of
from ..converters.editing import EditOptions, edit_file, parse_keys, parse_settings
from ._file_tool import changed, destination_inputs, layers_input, report_outputs, source_input

_FORM = "A line each, group_size = 64; or JSON; or 'group_size': 64, 'convrot': True."


class EditMetadata(io.ComfyNode):
    """The settings of quantized layers, edited by patterns; codes are copied."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithEditMetadata",
            display_name="Edit Quant Metadata",
            category="Roundsmith/files",
            description="Adds, changes or removes settings of a file's quantized layers, in the "
            "header and the layers alike, and puts both in order. Codes are copied as they are. "
            "Shows every change, before and after.",
            search_aliases=["comfy_quant", "quantization metadata", "edit header", "edit quant"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                source_input(),
                layers_input(
                    "Only layers in whose name this regular expression is found. Empty: every "
                    "quantized layer."
                ),
                io.String.Input(
                    "set",
                    default="",
                    multiline=True,
                    tooltip=f"Settings written in every such layer, new or not. {_FORM}",
                ),
                io.String.Input(
                    "remove",
                    default="",
                    tooltip="Names of settings to take out, separated by commas.",
                ),
                io.String.Input(
                    "add",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Settings written only where a layer lacks them.",
                ),
                io.String.Input(
                    "update",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Settings written only where a layer has them.",
                ),
                io.Boolean.Input(
                    "header",
                    default=True,
                    advanced=True,
                    tooltip="Write the settings into the file's header too where it has none.",
                ),
                io.Boolean.Input(
                    "normalise_scalars",
                    default=True,
                    advanced=True,
                    tooltip="Store scales in the shapes ComfyUI expects.",
                ),
                *destination_inputs("edited"),
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
        layers: str = "",
        set: str = "",
        remove: str = "",
        add: str = "",
        update: str = "",
        header: bool = True,
        normalise_scalars: bool = True,
        **destination: Any,
    ) -> io.NodeOutput:
        options = EditOptions(
            layers=layers.strip() or None,
            set=parse_settings(set, "set"),
            add=parse_settings(add, "add"),
            update=parse_settings(update, "update"),
            remove=parse_keys(remove),
            header=header,
            normalise_scalars=normalise_scalars,
        )
        return changed(run_file_tool(edit_file, source, options, label="edited", **destination))
