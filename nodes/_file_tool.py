"""The inputs and results that the nodes which change files share."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.file_tools import WRITE
from ..bridge.paths import FOLDERS, list_sources
from ..bridge.summaries import of_change
from ..converters.patching import ChangeReport
from ._result import with_result


def source_input() -> io.Combo.Input:
    """The file a tool reads."""
    return io.Combo.Input(
        "source",
        options=list_sources(),
        tooltip="A safetensors file from the diffusion model, text encoder or checkpoint folder.",
    )


def destination_inputs(suffix: str) -> list[io.Input]:
    """Where the result goes."""
    return [
        io.Combo.Input(
            "write",
            options=list(WRITE),
            default=WRITE[0],
            tooltip="new file: the source stays as it is. in place: the source is replaced once "
            "the result is complete. nothing: only show what would change.",
        ),
        io.Combo.Input(
            "folder",
            options=["same as source", *FOLDERS],
            default="same as source",
            advanced=True,
            tooltip="Where a new file goes.",
        ),
        io.String.Input(
            "filename",
            default="",
            advanced=True,
            tooltip="Name of a new file, subfolders allowed. {name} (the source's), {format} "
            f"(here '{suffix}') and {{date}} are filled in. Empty: {{name}}-{{format}}.",
        ),
        io.Boolean.Input(
            "overwrite",
            default=False,
            advanced=True,
            tooltip="Replace another file of that name. Otherwise it is an error.",
        ),
    ]


def layers_input(tooltip: str) -> io.String.Input:
    """Which layers; a regular expression."""
    return io.String.Input("layers", default="", tooltip=tooltip)


def report_outputs() -> list[io.Output]:
    """What was written, and what was changed."""
    return [
        io.String.Output("path", tooltip="The file that was written; empty if none was."),
        io.String.Output("report", tooltip="What was changed, before and after, as a table."),
        io.String.Output("json", tooltip="The same as JSON."),
    ]


def changed(report: ChangeReport) -> io.NodeOutput:
    """The node's results; the changes show on the node."""
    table = report.table()
    return with_result((report.path, table, report.json()), of_change(report), table)
