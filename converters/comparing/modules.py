"""Two modules on the same inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RoundsmithError
from ..calibration import Calibration, Capture, is_linear
from .comparison import Comparison, LayerScore, StepScore, worst_first
from .layers import bias_error, decoded, executed_snr, score_weights, stored_as
from .scores import Power

TOKENS = 256
"""Inputs of a layer that it is scored on."""

MEMORY = 2**30
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compare(
    reference: nn.Module,
    quantized: nn.Module,
    inputs: Any,
    threshold: float | None = None,
    *,
    layers: str | None = None,
    max_tokens: int = TOKENS,
    memory: int = MEMORY,
) -> Comparison:
    """Run both modules on the same inputs and score their outputs, and each linear layer alone.

    A layer is scored on a sample of what it sees *in the reference*, so that errors of the layers
    before it do not count against it: with exact activations (only its weights' errors), and as it
    really computes on its device. ::

        roundsmith.compare(model, quantized, tokens, threshold=30).table()

    Args:
        reference, quantized: modules whose linear layers have the same names. Both are run without
            dropout and gradients, and left as they were.
        inputs: what to call them with: a tensor, a tuple of arguments, or a mapping of keywords; or
            an iterable of these, one a call, which is read once.
        threshold: dB of the output's SNR that must be reached.
        layers: score only layers whose name this regular expression is found in.
        max_tokens: inputs of each layer it is scored on.
        memory: bytes these may take; where they do not fit, fewer are kept.

    Raises:
        QualityError: below ``threshold``; it carries the comparison.
        RoundsmithError: no inputs, or outputs that cannot be compared; where the second module
            fails, the message names layers whose shapes differ.
    """
    watch = Capture(reference, layers, max_tokens=max_tokens, memory=memory)
    total, steps = Power(), list[StepScore]()
    with _evaluating(reference, quantized), torch.no_grad():
        for call in _calls(inputs):
            with watch.hooks():
                expected = _tensors(_run(reference, call))
            call_power = Power()
            with _naming_unlike(reference, quantized):
                got = _tensors(_run(quantized, call))
                if len(expected) != len(got) or not expected:
                    raise RoundsmithError(
                        f"the reference gives {len(expected)} floating tensors, the quantized "
                        f"model {len(got)}: they cannot be compared"
                    )
                for mine, other in zip(expected, got, strict=True):
                    call_power.add(mine, other)
                    total.add(mine, other)
            steps.append(StepScore(len(steps) + 1, call_power.snr))
        if not steps:
            raise RoundsmithError("inputs: there are none; give a tensor, or several in a list")
        scores, missing, extra = _score_layers(reference, quantized, watch.finish())
    comparison = Comparison(
        snr=total.snr,
        what="output",
        psnr=total.psnr(),
        psnr_what="peak: the range of the reference's values",
        steps=tuple(steps) if len(steps) > 1 else (),
        layers=worst_first(scores),
        device=str(_device(quantized)),
        only_reference=missing,
        only_quantized=extra,
    )
    return comparison.require(threshold)


def _score_layers(
    reference: nn.Module, quantized: nn.Module, calibration: Calibration
) -> tuple[list[LayerScore], tuple[str, ...], tuple[str, ...]]:
    mine = dict(reference.named_modules())
    others = {name: child for name, child in quantized.named_modules() if is_linear(child)}
    scores, missing = [], []
    for name in calibration.layers:
        layer, other = mine[name], others.get(name)
        if other is None or _shape(other) != _shape(layer):
            missing.append(name)
            continue
        record = calibration.usable(name)
        scores.append(score_layer(name, layer, other, None if record is None else record.tokens))
    known = {name for name, child in mine.items() if is_linear(child)}
    extra = tuple(name for name in others if name not in known)
    return scores, tuple(missing), extra


def score_layer(
    name: str, layer: nn.Module, other: nn.Module, tokens: Tensor | None
) -> LayerScore:
    """Score ``other`` beside ``layer``, of the same shape, on ``tokens [T, N]`` (None: no tokens).

    Both are called on their own devices, in the dtype of the reference's weight.
    """
    shape = _shape(layer)
    weight, other_weight = _weight(layer), _weight(other)
    w, w_hat = decoded(weight), decoded(other_weight)
    if tuple(w.shape) != shape or tuple(w_hat.shape) != shape:
        return LayerScore(name, shape, stored_as(other_weight), note="its weight cannot be decoded")
    x = None if tokens is None or not len(tokens) else tokens.to(w_hat.device, torch.float32)
    scores = score_weights(
        lambda start, stop: w[start:stop],
        lambda start, stop: w_hat[start:stop],
        shape,
        x,
        bias_error(layer, other),
    )
    executed = None
    if x is not None:
        dtype = weight.dtype if weight.dtype in _FLOATS else torch.bfloat16
        expected = layer(x.to(weight.device, dtype))
        got = other(x.to(other_weight.device, dtype))
        executed = executed_snr(expected, got, scores.signal)
    return LayerScore(
        name,
        shape,
        stored_as(other_weight),
        scores.weight,
        scores.exact,
        executed,
        0 if x is None else len(x),
        "" if x is not None else "never reached",
    )


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _shape(layer: nn.Module) -> tuple[int, int]:
    out = getattr(layer, "out_features", None) or _weight(layer).shape[0]
    return int(out), int(getattr(layer, "in_features", None) or _weight(layer).shape[1])


@contextmanager
def _naming_unlike(reference: nn.Module, quantized: nn.Module) -> Iterator[None]:
    """Where running the second module fails, name the layers whose shapes are not the first's."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, RoundsmithError) as error:
        mine = {name: _shape(x) for name, x in reference.named_modules() if is_linear(x)}
        others = {name: _shape(x) for name, x in quantized.named_modules() if is_linear(x)}
        unlike = [name for name, shape in mine.items() if others.get(name, shape) != shape]
        if not unlike:
            raise
        (m, n), (m2, n2) = mine[unlike[0]], others[unlike[0]]
        more = f" ({len(unlike) - 1} more layers differ)" if len(unlike) > 1 else ""
        raise RoundsmithError(
            f"layer {unlike[0]!r} is {m}×{n} in the reference, {m2}×{n2} in the quantized model"
            f"{more}: give two states of the same model ({error})"
        ) from error


def _calls(inputs: Any) -> Iterator[Any]:
    """The calls ``inputs`` stand for, one after the other."""
    if isinstance(inputs, (Tensor, tuple, Mapping)):
        yield inputs
    elif isinstance(inputs, Iterable) and not isinstance(inputs, (str, bytes)):
        yield from inputs
    else:
        raise RoundsmithError(
            f"inputs: a {type(inputs).__name__} is neither a tensor, a tuple of arguments, a "
            "mapping of keywords, nor an iterable of these"
        )


def _run(module: nn.Module, call: Any) -> Any:
    call = _moved(call, _device(module))
    if isinstance(call, Mapping):
        return module(**call)
    return module(*call) if isinstance(call, tuple) else module(call)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    return value


def _device(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _tensors(value: Any) -> list[Tensor]:
    """The floating tensors of an output, however nested, in its order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for f in dataclasses.fields(value) for t in _tensors(getattr(value, f.name))]
    return []


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Without dropout; each part is set back afterwards."""
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part in training:
            part.training = True
