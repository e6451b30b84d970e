"""Export Input Scales."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.file_tools import version_of
from ..bridge.paths import next_output_path, resolve_source
from ..bridge.results import Result
from ..converters.corrections import export_input_scales, save_input_scales
from ._file_tool import layers_input, source_input
from ._result import with_result


class ExportInputScales(io.ComfyNode):
    """The fixed scales of layers' inputs out of a quantized file, as JSON."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithExportInputScales",
            display_name="Export Input Scales",
            category="Roundsmith/files",
            description="Writes the input scales of a quantized file as JSON that Set Input Scales "
            "reads, for another file of the same model.",
            search_aliases=["input_scale", "save scales", "activation scale"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                source_input(),
                layers_input(
                    "Only layers in whose name this regular expression is found. Empty: all."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="input-scales/scales",
                    tooltip="Name of the file inside the output folder; a number is added.",
                ),
            ],
            outputs=[
                io.String.Output("path", tooltip="The file that was written."),
                io.String.Output("json", tooltip="The scales by layer, as JSON."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, **_: object) -> str:
        return version_of(source)

    @classmethod
    def execute(cls, source: str, layers: str, filename_prefix: str) -> io.NodeOutput:
        found = export_input_scales(resolve_source(source), layers.strip() or None)
        path = save_input_scales(found, next_output_path(filename_prefix, ".json"))
        summary = "\n".join([f"{path.name}: {len(found.scales)} input scales", *found.notes])
        facts = {"file": path.name, "bytes_after": path.stat().st_size, "scales": len(found.scales)}
        rows = [{"name": name, "input_scale": scale} for name, scale in found.scales.items()]
        result = Result("scales", facts, tuple(found.notes), {"rows": rows})
        return with_result((str(path), found.json()), result, summary)
