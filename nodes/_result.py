"""Results that show on the node."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io, ui

from ..bridge.results import Result
from ..bridge.self_calibration import read_note
from ..bridge.summaries import of_files, of_report
from ..converters import Recipe, Report
from ..converters.progress import human_bytes


def brief(report: Report) -> str:
    """A report in a few short lines."""
    kept = sum(layer.action == "keep" for layer in report.layers)
    sizes = f"{report.bytes_before / 1e6:,.1f} → {report.bytes_after / 1e6:,.1f} MB"
    lines = [f"{sizes}, {report.quantized} layers quantized, {kept} kept"]
    lines += list(filter(None, (report.quality(), report.methods())))
    lines += [text for text in report.warnings if read_note(text)]
    count = sum(not read_note(text) for text in report.warnings)
    if count:
        lines.append(f"{count} note{'s' if count > 1 else ''}: see the report")
    return "\n".join(lines)


def with_result(
    outputs: Sequence[Any], result: Result, text: str, *others: ui._UIOutput
) -> io.NodeOutput:
    """A node's outputs, and what it shows: ``result`` in the browser, ``text`` in the history."""
    shows: dict[str, Any] = {}
    for other in (*others, ui.PreviewText(text)):
        shows.update(other.as_dict())
    return io.NodeOutput(*outputs, ui={**shows, "roundsmith": (result.summary(),)})


def quantized(outputs: Sequence[Any], report: Report) -> io.NodeOutput:
    """The outputs of a node that quantized, and its report."""
    return with_result(outputs, of_report(report), brief(report))


def saved(written: Mapping[str, int]) -> io.NodeOutput:
    """No output but files, shown with their bytes."""
    lines = [f"{name}: {human_bytes(size)}" for name, size in written.items()]
    return with_result((), of_files(written), "\n".join(lines))


def with_json(recipe: Recipe) -> io.NodeOutput:
    """A recipe and its JSON, which shows on the node."""
    text = json.dumps(json.loads(recipe.to_json()), indent=2)
    return io.NodeOutput(recipe, text, ui=ui.PreviewText(text))
