"""Measure how much each layer of a MODEL matters to what it gives, while it samples.

One more run samples as before; at a few of its steps the model is called again and again with the
same input, each time with another layer disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as mm

from ..converters.calibration import Influences
from .capturing import intercept_model, model_layers
from .passes import Bar, Run, guarded
from .progress import Messages
from .sources import is_linear

PARTS = (0.25, 0.75)
"""Of a run's steps: where layers are measured; early and late ones need different layers."""


def model_influences(model: Any, run: Run, steps: int, layers: str = "") -> dict[str, float]:
    """The influence of each linear layer of a MODEL's network on what it gives, by name.

    Takes as many calls of the model, for each place in ``PARTS``, as there are layers.

    Args:
        model: a ModelPatcher; it is not changed.
        run: samples once.
        steps: of the run.
        layers: only layers whose name this regular expression is found in.

    Raises:
        RoundsmithError: the run failed, or its outputs are not finite.
    """
    names = list(model_layers(model, layers))
    measured = Influences(model.model.diffusion_model, names, linear=is_linear)
    places = {min(int(part * steps), steps - 1) for part in PARTS}
    many, step, begun = len(places), 0, 0
    messages = Messages("influences")

    def told(done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        messages.send((begun - 1 + done / total) / many, index=done, count=total)

    def calling(go: Callable[[], Any]) -> Any:
        nonlocal begun
        reached = {place for place in places if place <= step}
        if not reached:
            return go()
        places.difference_update(reached)
        begun += 1
        return measured.add(go, told)

    def watched(model: Any, callback: Any) -> Any:
        def after(at: int, *rest: Any) -> None:
            nonlocal step
            step = at + 1
            callback(at, *rest)

        return run(model, after)

    guarded(watched, intercept_model(model, calling), Bar(model, 1, 1, steps))
    return measured.finish()
