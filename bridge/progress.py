"""Progress on the node and in the browser, and a run that ends when the person cancels."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import comfy.model_management as mm
import comfy.utils
from comfy_execution.utils import get_executing_context

from .results import plain

EVENT = "roundsmith.progress"
INTERVAL = 0.1
"""Seconds between messages."""


class Messages:
    """What the node that is being executed does, told to the browser ten times a second at most.

    A message has the node and its run, the ``stage`` (a word the browser knows), ``done`` of 1,
    seconds ``elapsed`` in the stage and ``remaining``, and what :meth:`send` is given. There is
    none where no node is executed or no browser is there.

    Args:
        stage: ``quantizing``, ``saving``, ``calibrating`` and the like.
    """

    def __init__(self, stage: str) -> None:
        self.context = get_executing_context()
        self.stage = stage
        self._began = time.monotonic()
        self._sent = 0.0

    def again(self, stage: str) -> None:
        """Another stage begins."""
        self.stage, self._began, self._sent = stage, time.monotonic(), 0.0

    def send(self, done: float, **facts: Any) -> None:
        """Tell how far it is. ``facts``: the layer's name, numbers; those that are None are not
        sent.
        """
        now = time.monotonic()
        if self.context is None or (now - self._sent < INTERVAL and done < 1):
            return
        self._sent = now
        elapsed = now - self._began
        times = {"elapsed": elapsed, "remaining": elapsed * (1 - done) / done if done else None}
        message = {
            "node": self.context.node_id,
            "prompt_id": self.context.prompt_id,
            "stage": self.stage,
            "done": done,
            **{key: value for key, value in {**times, **facts}.items() if value is not None},
        }
        with suppress(ImportError, AttributeError):
            from server import PromptServer

            server = PromptServer.instance
            server.send_sync(EVENT, plain(message), server.client_id)


class NodeProgress:
    """A ``progress`` callback for the engine, for the node that is being executed.

    Each call first gives ComfyUI the chance to interrupt (it raises a ``BaseException``), then
    moves the node's bar and tells the browser the layer.
    """

    def __init__(self, stage: str) -> None:
        self._messages = Messages(stage)
        context = self._messages.context
        self._bar = comfy.utils.ProgressBar(1, node_id=context.node_id if context else None)

    def __call__(self, progress: Any) -> None:
        """Report ``progress`` (a :class:`roundsmith.converters.Progress`)."""
        mm.throw_exception_if_processing_interrupted()
        total = max(progress.bytes_total, 1)
        self._bar.update_absolute(progress.bytes_done, total)
        self._messages.send(
            progress.bytes_done / total,
            layer=progress.layer,
            index=progress.index,
            count=progress.count,
            gain=progress.gain,
        )


def cancelled() -> bool:
    """Whether the person asked to stop; the engine polls it between calls of the progress."""
    return bool(mm.processing_interrupted())
