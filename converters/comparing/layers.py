"""One layer beside its reference: what its weights lost, and what that does to its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...layouts import formats
from .scores import Power

Rows = Callable[[int, int], Tensor]
"""Gives rows of a weight, of any floating dtype, from and up to which."""

_AT_ONCE = 2**22  # weights


class Scores(NamedTuple):
    """SNRs in dB: of the weights, and of the outputs with exact activations where there were some.

    ``signal`` is ‖XWᵀ‖², ``power`` ‖W‖²; not finite where the reference itself is not.
    """

    weight: float
    exact: float | None
    signal: float
    power: float = 0.0


def score_weights(
    reference: Rows,
    quantized: Rows,
    shape: tuple[int, int],
    x: Tensor | None = None,
    bias_error: Tensor | None = None,
) -> Scores:
    """Score the weights of a layer, a few rows at a time.

    Args:
        reference, quantized: the weights W and Ŵ.
        shape: their shape ``[M, N]``.
        x: inputs ``[T, N]``; decides the device. None: only the weights are scored.
        bias_error: ``[M]``, b̂ − b, where a bias was changed too.
    """
    weights, outputs = Power(), Power()
    m, n = shape
    step = max(_AT_ONCE // max(n, 1), 1)
    x = None if x is None else x.to(torch.float32)
    device = torch.device("cpu") if x is None else x.device
    for start in range(0, m, step):
        stop = min(start + step, m)
        w = reference(start, stop).to(device, torch.float32)
        error = quantized(start, stop).to(device, torch.float32) - w
        weights.add_error(w, error)
        if x is None:
            continue
        output_error = x @ error.T
        if bias_error is not None:
            output_error += bias_error[start:stop].to(output_error)
        outputs.add_error(x @ w.T, output_error)
    exact = None if x is None else outputs.snr
    return Scores(weights.snr, exact, outputs.signal, weights.signal)


def executed_snr(reference: Tensor, executed: Tensor, signal: float) -> float:
    """SNR in dB of what a layer computed, against what the reference's layer did.

    Args:
        reference, executed: ``[T, M]``, biases included.
        signal: ‖XWᵀ‖², without biases.
    """
    power = Power()
    power.add(reference, executed)
    power.signal = signal
    return power.snr


def decoded(weight: Tensor) -> Tensor:
    """A weight's values in float32, whatever holds it; without the rounding of its own dtype."""
    weight = weight.detach()
    if not hasattr(weight, "dequantize") or type(weight) is Tensor:
        return weight.to(torch.float32)
    params = getattr(weight, "_params", None)
    if dataclasses.is_dataclass(params) and hasattr(params, "orig_dtype"):
        weight = weight.to(torch.float32)  # a QuantizedTensor: it only notes the dtype
    values: Any = weight.dequantize()
    return torch.as_tensor(values, dtype=torch.float32)


def stored_as(weight: Tensor) -> str:
    """What holds a weight: the name of a layout, or of a dtype."""
    name = getattr(weight, "_layout_cls", None)
    return str(name) if isinstance(name, str) else str(weight.dtype).removeprefix("torch.")


def described(conf: Mapping[str, Any]) -> str:
    """A quantized layer's JSON in a few words: ``int8_tensorwise convrot 256``."""
    fmt = formats().get(str(conf.get("format")))
    words = [str(conf.get("format"))]
    if conf.get("group_size"):
        words.append(f"block {conf['group_size']}")
    if fmt is not None and fmt.convrot_of(conf):
        words.append(f"convrot {fmt.convrot_of(conf)}")
    if conf.get("full_precision_matrix_mult"):
        words.append("full-precision")
    return " ".join(words)


def bias_error(reference: Any, quantized: Any) -> Tensor | None:
    """b̂ − b of two layers in float32; None where there is no difference."""
    b, other = getattr(reference, "bias", None), getattr(quantized, "bias", None)
    return difference(b, other)


def difference(b: Tensor | None, other: Tensor | None) -> Tensor | None:
    """``other − b`` in float32, either of which may be missing; None where they are equal."""
    if b is None and other is None:
        return None
    left = torch.zeros(()) if b is None else b.detach().to(torch.float32)
    right = torch.zeros(()) if other is None else other.detach().to(left.device, torch.float32)
    error = right - left.to(right.device)
    return error if bool(error.any()) else None
