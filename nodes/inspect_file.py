"""Inspect Quantized File."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..bridge.files import inspect_file
from ..bridge.paths import list_sources
from ..bridge.progress import show_text


class InspectFile(io.ComfyNode):
    """What is in a file: formats, layers, sizes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithInspectFile",
            display_name="Inspect Quantized File",
            category="Roundsmith",
            description="Shows how each layer of a file is stored, what model it is, and what is "
            "odd about it. Only the header and the layers' JSON are read.",
            search_aliases=["file info", "show formats", "safetensors metadata"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "source",
                    options=list_sources(),
                    tooltip="A safetensors file from the diffusion model, text encoder or "
                    "checkpoint folder.",
                )
            ],
            outputs=[
                io.String.Output("table", tooltip="A line for each layer."),
                io.String.Output("json", tooltip="The same as JSON."),
            ],
        )

    @classmethod
    def execute(cls, source: str) -> io.NodeOutput:
        found = inspect_file(source)
        show_text(found.summary)
        return io.NodeOutput(found.table, found.json, ui=ui.PreviewText(found.table))
