"""Record what a loaded MODEL or CLIP really sees, while it runs and only then.

A MODEL's clone carries a wrapper, in ComfyUI's own place for them, that enters a context around
each call of the model: most often a capture's hooks, which are on the network for that call and
gone after it, whatever happened. ComfyUI calls models of every family through that place; the one
inside the networks is missing from many. A CLIP's clone carries a stand-in for its model that does
so around each encoding. In between and afterwards nothing is on the modules, which clones share.

Hooks see a layer's inputs only, so it does not matter how its weight is held: partly on the CPU,
streamed, patched by a LoRA, or quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import comfy.model_management as mm
import comfy.utils
from comfy.patcher_extension import WrappersMP
from torch import nn

from ..converters import ModelView
from ..converters.calibration import Capture, Fingerprint
from ..converters.matching import check_pattern, search_pattern
from ..errors import RecipeError, RoundsmithError
from .networks import DIFFUSION, encoder_prefixes
from .sources import PatchedWeights, is_linear

KEY = "roundsmith.capture"
COMPILED = "torch.compile"

Around = Callable[[], AbstractContextManager[Any]]
"""Gives the context that one call of a model or an encoder runs in."""


def model_layers(patcher: Any, pattern: str = "") -> dict[str, int]:
    """Linear layers of a MODEL's diffusion network whose name ``pattern`` is found in.

    Returns their input widths by name, relative to the network, in its order. Raises RecipeError
    for a pattern that is no regular expression or found in no layer.
    """
    return _matching(_linear_layers(patcher.model.diffusion_model), pattern)


def clip_layers(clip: Any, pattern: str = "") -> dict[str, int]:
    """Linear layers of a CLIP's text encoders, named as ``clip_l.transformer.…``; as above."""
    model = clip.patcher.model
    encoders = tuple(encoder_prefixes(model))
    if not encoders:
        raise RoundsmithError("this CLIP holds no text encoder that can be recorded")
    found = _linear_layers(model)
    return _matching({name: n for name, n in found.items() if name.startswith(encoders)}, pattern)


def model_capture(patcher: Any, layers: Iterable[str] | None = None, **options: Any) -> Capture:
    """A capture of a MODEL's diffusion network, layers named relative to it.

    Its fingerprint is of the weights without LoRAs, wherever they are at the moment.

    Args:
        patcher: the ModelPatcher; it is read, never changed.
        layers: names of the layers to record; None: every one of :func:`model_layers`.
        options: the other settings of a :class:`~roundsmith.converters.calibration.Capture`.
    """
    return model_captures(patcher, layers)(**options)


def clip_capture(clip: Any, layers: Iterable[str] | None = None, **options: Any) -> Capture:
    """A capture of a CLIP's text encoders, layers named as ``clip_l.transformer.…``.

    Arguments as for :func:`model_capture`. Raises RoundsmithError where there is no encoder.
    """
    return clip_captures(clip, layers)(**options)


def model_captures(patcher: Any, layers: Iterable[str] | None = None) -> Callable[..., Capture]:
    """Makes any number of captures as :func:`model_capture` does, also while the model runs."""
    return _captures(patcher, DIFFUSION, model_layers(patcher) if layers is None else layers)


def clip_captures(clip: Any, layers: Iterable[str] | None = None) -> Callable[..., Capture]:
    """Makes any number of captures as :func:`clip_capture` does, also while the encoders run."""
    return _captures(clip.patcher, "", clip_layers(clip) if layers is None else layers)


def capture_model(patcher: Any, capture: Capture) -> Any:
    """A clone of a MODEL that is recorded by ``capture`` whenever it is sampled."""
    return wrap_model(patcher, capture.hooks)


def capture_clip(clip: Any, capture: Capture) -> Any:
    """A clone of a CLIP that is recorded by ``capture`` whenever it encodes."""
    return wrap_clip(clip, capture.hooks)


def wrap_model(patcher: Any, around: Around) -> Any:
    """A clone of a MODEL each of whose calls runs within ``around()``.

    More of it under :func:`intercept_model`.
    """

    def within(go: Callable[[], Any]) -> Any:
        with around():
            return go()

    return intercept_model(patcher, within)


def intercept_model(patcher: Any, calling: Callable[[Callable[[], Any]], Any]) -> Any:
    """A clone of a MODEL, for each call of which ``calling`` is given a function that does it, as
    often as it is called, and gives the result.

    The clone runs uncompiled, since compiled code leaves hooks out, and on one GPU. Each call first
    gives ComfyUI the chance to interrupt.
    """

    def call(executor: Any, *arguments: Any, **keywords: Any) -> Any:
        mm.throw_exception_if_processing_interrupted()
        return calling(partial(executor, *arguments, **keywords))

    new = patcher.clone()
    new.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILED)
    new.remove_additional_models("multigpu")
    new.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, call)
    return new


def wrap_clip(clip: Any, around: Around) -> Any:
    """A clone of a CLIP each of whose encodings and generations runs within ``around()``.

    Clones of the clone do so too.
    """
    new = clip.clone()
    new.cond_stage_model = _Stand(clip.cond_stage_model, around)
    return new


def _captures(patcher: Any, prefix: str, layers: Iterable[str]) -> Callable[..., Capture]:
    module = comfy.utils.get_attr(patcher.model, prefix[:-1]) if prefix else patcher.model
    names = list(layers)
    with patcher.use_ejected():
        marks = _unpatched_fingerprint(patcher, prefix).marks
    fingerprint = Fingerprint({name: marks[name] for name in names if name in marks})

    def make(**options: Any) -> Capture:
        capture = Capture(module, names, linear=is_linear, **options)
        capture.fingerprint = fingerprint
        return capture

    return make


def _unpatched_fingerprint(patcher: Any, prefix: str) -> Fingerprint:
    """Of a part of a patcher's model without its LoRAs, wherever its weights are."""
    plain = patcher.clone()
    plain.patches = {}
    source = PatchedWeights(plain, prefix)
    try:
        return Fingerprint.of_view(ModelView(source))
    finally:
        source.close()


def _linear_layers(module: nn.Module) -> dict[str, int]:
    return {name: part.in_features for name, part in module.named_modules() if is_linear(part)}


def _matching(layers: dict[str, int], pattern: str) -> dict[str, int]:
    pattern = pattern.strip()
    if not pattern:
        return layers
    try:
        check_pattern(pattern)
    except ValueError as error:
        raise RecipeError(f"layers: {error}") from error
    found = {name: n for name, n in layers.items() if search_pattern(pattern, name)}
    if not found:
        some = ", ".join(list(layers)[:3])
        raise RecipeError(f"layers: {pattern!r} is found in no linear layer; some are {some}")
    return found


class _Stand:
    """Stands for a CLIP's model: the same in everything, but runs within a context."""

    def __init__(self, model: Any, around: Around) -> None:
        self._model, self._around = model, around

    def __getattr__(self, name: str) -> Any:
        if name == "_model":  # while it is being copied
            raise AttributeError(name)
        return getattr(self._model, name)

    def encode_token_weights(self, *arguments: Any, **keywords: Any) -> Any:
        return self._run(self._model.encode_token_weights, arguments, keywords)

    def generate(self, *arguments: Any, **keywords: Any) -> Any:
        return self._run(self._model.generate, arguments, keywords)

    def _run(self, method: Callable[..., Any], arguments: Any, keywords: Any) -> Any:
        mm.throw_exception_if_processing_interrupted()
        with self._around():
            return method(*arguments, **keywords)
