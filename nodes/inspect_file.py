"""Inspect Quantized File."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui

from ..bridge.file_tools import version_of
from ..bridge.paths import list_sources, resolve_source
from ..bridge.progress import NodeProgress, cancelled
from ..bridge.summaries import of_inspection
from ..converters.comparing.pictures import to_tensor
from ..converters.inspecting import charts, inspect_file
from ._file_tool import source_input
from ._result import with_result

NONE = "none"


class InspectFile(io.ComfyNode):
    """What is in a file: formats, layers, sizes, what is wrong with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithInspectFile",
            display_name="Inspect Quantized File",
            category="Roundsmith/files",
            description="Shows how each layer of a file is stored, what is suspicious about its "
            "scales and codes, which loaders read it and why others do not, and how it was made. "
            "Scales are read whole, of codes a sample.",
            search_aliases=[
                "file info",
                "show formats",
                "safetensors metadata",
                "diagnose",
                "model info",
                "which format",
                "what is in this file",
            ],
            is_output_node=True,
            inputs=[
                source_input(),
                io.Boolean.Input(
                    "deep",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Read all codes, not a sample of each layer's.",
                ),
                io.Combo.Input(
                    "original",
                    options=[NONE, *list_sources()],
                    default=NONE,
                    optional=True,
                    advanced=True,
                    tooltip="The model before it was quantized: weights are scored against it, "
                    "which reads both files. none: the score is estimated from the codes.",
                ),
            ],
            outputs=[
                io.String.Output("table", tooltip="A line for each layer, then the totals."),
                io.String.Output("json", tooltip="The same as JSON."),
                io.Image.Output("chart", tooltip="Bytes and SNR of the model's blocks."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, original: str = NONE, **_: object) -> str:
        return " ".join(version_of(name) for name in (source, original))

    @classmethod
    def execute(cls, source: str, deep: bool = False, original: str = NONE) -> io.NodeOutput:
        found = inspect_file(
            resolve_source(source),
            deep=deep,
            original=None if original == NONE else resolve_source(original),
            progress=NodeProgress("reading"),
            cancel=cancelled,
        )
        found = replace(found, path=source, reference="" if original == NONE else original)
        table = found.table()
        chart = to_tensor(charts.draw(found))[None]
        outputs = (table, found.json(), chart)
        preview = ui.PreviewImage(chart, cls=cls)
        return with_result(outputs, of_inspection(found, source), table, preview)
