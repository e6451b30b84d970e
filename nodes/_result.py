"""Results that show on the node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..bridge.progress import show_text


def with_report(result: Any, report: str, summary: str) -> io.NodeOutput:
    """A node's result and its report; the summary shows on the node."""
    show_text(summary)
    return io.NodeOutput(result, report, ui=ui.PreviewText(summary))


def shown(text: str) -> io.NodeOutput:
    """No output but a text on the node."""
    show_text(text)
    return io.NodeOutput(ui=ui.PreviewText(text))
