"""Inputs and results that the nodes around calibrations share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.passes import MAX_TOKENS
from ..bridge.summaries import of_calibration
from ..converters.calibration import Calibration
from ._result import with_result


def capture_inputs(beyond: str) -> list[io.Input]:
    """What is recorded, and in how much memory; ``beyond``: what happens where it does not fit."""
    return [
        io.Int.Input(
            "max_tokens",
            display_name="tokens per layer",
            default=MAX_TOKENS,
            min=64,
            max=65536,
            step=64,
            advanced=True,
            tooltip="How many of the tokens a layer sees are kept, drawn evenly from all of them. "
            "More is a little better and takes more memory.",
        ),
        io.Int.Input(
            "memory_mb",
            display_name="memory (MB)",
            default=0,
            min=0,
            max=1048576,
            step=64,
            advanced=True,
            tooltip=f"Memory the statistics may take; 0: half of what is free. {beyond}",
        ),
        io.String.Input(
            "layers",
            default="",
            advanced=True,
            tooltip="Record only layers whose name this regular expression is found in. Empty: "
            "every linear layer.",
        ),
    ]


def calibration_outputs() -> list[io.Output]:
    """The report, which every node that makes a calibration gives."""
    return [io.String.Output("report", tooltip="What was recorded of each layer, as a table.")]


def brief(calibration: Calibration) -> str:
    """A calibration in a few short lines, to be read on a node."""
    found = [s for s in map(calibration.summary, calibration.layers) if s is not None]
    settings = calibration.settings
    seen = max((s.count for s in found), default=0)
    most = max((s.available for s in found), default=0)
    lines = [f"{len(found)} layers, up to {most:,} tokens each of {seen:,} seen"]
    runs = settings.get("runs")
    if runs and len(runs) > 1:
        lines.append(f"{len(runs)} runs together")
    else:
        passes = settings.get("passes", 1)
        slowdown = settings.get("slowdown")
        slower = "" if slowdown is None else f", {slowdown:.2f} times the time of plain sampling"
        lines.append(f"{passes} {'pass' if passes == 1 else 'passes'}{slower}")
    if calibration.influences:
        lines.append(f"which layers matter: {len(calibration.influences)} measured")
    if calibration.unreached:
        lines.append(f"{len(calibration.unreached)} layers never reached")
    notes = len(calibration.warnings) + len(calibration.notes) - bool(calibration.unreached)
    if notes:
        lines.append(f"{notes} {'note' if notes == 1 else 'notes'}: see the report")
    return "\n".join(lines)


def table(calibration: Calibration) -> str:
    """A calibration as text: a line a layer, what to know of it, and how it was made."""
    rows = [("layer", "inputs", "tokens seen", "used", "NaN or Inf")]
    for layer in calibration.layers:
        summary = calibration.summary(layer)
        if summary is None:
            rows.append((layer, "-", "never reached", "-", "-"))
            continue
        numbers = (summary.features, summary.count, summary.available, summary.nonfinite)
        rows.append((layer, *(f"{number:,}" for number in numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += ["", *calibration.warnings, *calibration.notes]
    lines += [f"{name}: {value}" for name, value in calibration.settings.items() if name != "runs"]
    return "\n".join(lines)


def calibrated(calibration: Calibration, *others: Any) -> io.NodeOutput:
    """The calibration, other results and the report; the short text shows on the node."""
    outputs = (calibration, *others, table(calibration))
    return with_result(outputs, of_calibration(calibration), brief(calibration))
