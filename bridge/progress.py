"""Progress on the node and in the browser, and a run that ends when the person cancels."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import comfy.model_management as mm
import comfy.utils
from comfy_execution.utils import get_executing_context

TEXT_INTERVAL = 0.1


class NodeProgress:
    """A ``progress`` callback for the engine, for the node that is being executed.

    Each call first gives ComfyUI the chance to interrupt (it raises a ``BaseException``), then
    moves the node's bar and, a few times a second, shows the layer's name on the node.
    """

    def __init__(self, what: str = "") -> None:
        context = get_executing_context()
        self._node_id = context.node_id if context else None
        self._what = f"{what} " if what else ""
        self._bar = comfy.utils.ProgressBar(1, node_id=self._node_id)
        self._shown = 0.0

    def __call__(self, progress: Any) -> None:
        """Report ``progress`` (a :class:`roundsmith.converters.Progress`)."""
        mm.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(progress.bytes_done, max(progress.bytes_total, 1))
        now = time.monotonic()
        if now - self._shown >= TEXT_INTERVAL or progress.index >= progress.count:
            self._shown = now
            show_text(
                f"{self._what}{progress.layer} ({progress.index}/{progress.count})", self._node_id
            )


def show_text(text: str, node_id: str | None = None) -> None:
    """Show text on the node that is being executed; nothing where there is no browser for it."""
    context = get_executing_context()
    node_id = node_id or (context.node_id if context else None)
    if node_id is None:
        return
    with suppress(ImportError, AttributeError):
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, node_id)


def cancelled() -> bool:
    """Whether the person asked to stop; the engine polls it between calls of the progress."""
    return bool(mm.processing_interrupted())
