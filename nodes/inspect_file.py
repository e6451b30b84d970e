"""Inspect Quantized File."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui

from ..bridge.paths import list_sources, resolve_source
from ..bridge.progress import show_text
from ..converters.inspecting import inspect_file


class InspectFile(io.ComfyNode):
    """What is in a file: formats, layers, sizes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithInspectFile",
            display_name="Inspect Quantized File",
            category="Roundsmith",
            description="Shows how each layer of a file is stored, what model it is, which loaders "
            "read it, how it was made and what is odd about it. Only the header and the layers' "
            "JSON are read.",
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
                io.String.Output("table", tooltip="A line for each layer, then the totals."),
                io.String.Output("json", tooltip="The same as JSON."),
            ],
        )

    @classmethod
    def execute(cls, source: str) -> io.NodeOutput:
        found = replace(inspect_file(resolve_source(source)), path=source)
        show_text(found.summary())
        table = found.table()
        return io.NodeOutput(table, found.json(), ui=ui.PreviewText(table))
