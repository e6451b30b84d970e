"""A recording that spans a graph: begun by one node, fed by samplers or encoders, ended by one.

ComfyUI keeps what nodes gave and runs again only those whose inputs changed. So a recording keeps
what each node added the last time it ran: a sampler that was not run again counts with what the
layers saw then, just as its latent does.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from comfy_execution.utils import get_executing_context

from ..converters.calibration import Calibration, Capture, plan_passes
from ..errors import RoundsmithError
from .capturing import (
    clip_captures,
    clip_layers,
    model_captures,
    model_layers,
    wrap_clip,
    wrap_model,
)
from .passes import MAX_TOKENS, memory_bytes, temporary_folder


class Recording:
    """What nodes recorded with the clones of one MODEL or CLIP.

    Args:
        start: makes a capture, for each run of a node that samples or encodes.
        what: that node, for messages: "sampler" or "text encoder".
    """

    def __init__(self, start: Callable[[], Capture], what: str) -> None:
        self._start, self._what = start, what
        self._parts: dict[str, tuple[str, Capture | Calibration]] = {}

    @contextmanager
    def around(self) -> Iterator[None]:
        """The context of one call: hooks of the capture of the node that is being executed."""
        context = get_executing_context()
        node, run = (context.node_id, context.prompt_id) if context else ("", "")
        known = self._parts.get(node)
        if known is None or known[0] != run or not isinstance(known[1], Capture):
            known = self._parts[node] = (run, self._start())
        with known[1].hooks():
            yield

    def finish(self, nodes: Container[str] | None = None) -> Calibration:
        """Everything recorded, of all nodes or of those still in the graph. May be asked again.

        Args:
            nodes: ids of the graph's nodes.

        Raises:
            RoundsmithError: nothing was recorded.
        """
        parts = []
        for node, (run, part) in list(self._parts.items()):
            if nodes is not None and node.partition(".")[0] not in nodes:  # "7.0.2": made by 7
                del self._parts[node]
                continue
            if isinstance(part, Capture):
                part = part.finish()
                self._parts[node] = (run, part)
            if len(part.unreached) < len(part.layers):
                parts.append(part)
        if not parts:
            raise RoundsmithError(
                f"nothing was recorded: no {self._what} ran with the recording output since it "
                f"was made. Connect it to a {self._what}, and what comes out of that to 'after', "
                "so that this node runs last. If it is connected so, ComfyUI had kept the result "
                f"of an earlier run and did not run the {self._what} again: change its seed or "
                "text and queue once more."
            )
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merge(part)
        return merged


def record_model(
    model: Any, layers: str = "", max_tokens: int = MAX_TOKENS, memory_mb: int = 0
) -> tuple[Any, Recording]:
    """A clone of a MODEL that records whenever it is sampled, and the recording.

    Args:
        model: a ModelPatcher; it is not changed.
        layers: record only layers whose name this regular expression is found in.
        max_tokens: tokens kept of each layer, for every node that samples.
        memory_mb: megabytes these may take in memory, 0 for half of what is free; where they do not
            fit they are kept in a file in ComfyUI's temporary folder.
    """
    widths = model_layers(model, layers)
    make = model_captures(model, widths)
    options = _storage(widths, max_tokens, memory_mb)
    recording = Recording(partial(_start, make, options, "sampler"), "sampler")
    return wrap_model(model, recording.around), recording


def record_clip(
    clip: Any, layers: str = "", max_tokens: int = MAX_TOKENS, memory_mb: int = 0
) -> tuple[Any, Recording]:
    """A clone of a CLIP that records whenever it encodes, and the recording; as above."""
    widths = clip_layers(clip, layers)
    make = clip_captures(clip, widths)
    options = _storage(widths, max_tokens, memory_mb)
    recording = Recording(partial(_start, make, options, "text encoder"), "text encoder")
    return wrap_clip(clip, recording.around), recording


def _start(make: Callable[..., Capture], options: dict[str, Any], what: str) -> Capture:
    capture = make(**options)
    capture.settings["what"] = what
    return capture


def _storage(widths: dict[str, int], max_tokens: int, memory_mb: int) -> dict[str, Any]:
    """A graph is run once: what does not fit in memory goes to a file."""
    memory = memory_bytes(memory_mb)
    fits = len(plan_passes(widths, max_tokens, memory)) == 1
    store = {} if fits else {"store": temporary_folder()}
    return {"max_tokens": max_tokens, "memory": memory, **store}
