"""The linear layers of two MODELs, one by one, on what the first one's layers see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ..checkpoints import decode_conf
from ..converters.calibration import Calibration
from ..converters.comparing import LayerScore
from ..converters.comparing.layers import (
    decoded,
    described,
    difference,
    executed_snr,
    score_weights,
    stored_as,
)
from ..errors import RoundsmithError
from .capturing import model_layers
from .networks import DIFFUSION
from .stored import patched_as_loaded, patched_float


def common_layers(
    reference: Any, quantized: Any
) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """Linear layers both MODELs have in the same shape, and those only one has.

    Raises RoundsmithError where they have none in common.
    """
    mine, others = (_shapes(patcher) for patcher in (reference, quantized))
    common = [name for name, shape in mine.items() if others.get(name) == shape]
    if not common:
        raise RoundsmithError(
            "the two models have no linear layer in common: connect the same model, once as it was "
            "and once quantized"
        )
    only = [tuple(name for name in names if name not in common) for names in (mine, others)]
    return common, only[0], only[1]


def layer_outputs(patcher: Any, calibration: Calibration) -> Iterator[tuple[str, Tensor]]:
    """What each layer that was recorded computes of its recorded inputs, ``[T, M]`` on the CPU.

    The layer itself is called, as ComfyUI loaded it: quantized activations, LoRAs, weights that are
    streamed, whatever it does.
    """
    mm.load_models_gpu([patcher])
    network, dtype = patcher.model.diffusion_model, patcher.model.get_dtype_inference()
    for name in calibration.layers:
        mm.throw_exception_if_processing_interrupted()
        record = calibration.usable(name)
        if record is not None and len(record.tokens):
            layer = comfy.utils.get_attr(network, name)
            yield name, layer(record.tokens.to(patcher.load_device, dtype)).cpu()


def score_layers(
    reference: Any,
    quantized: Any,
    calibration: Calibration,
    expected: Mapping[str, Tensor],
    executed: Iterable[tuple[str, Tensor]],
) -> list[LayerScore]:
    """Score each layer of ``quantized`` that was watched in ``reference``.

    Args:
        reference, quantized: the ModelPatchers; read, never changed.
        calibration: what the reference's layers saw.
        expected: what the reference's layers computed of it.
        executed: what the quantized ones do.
    """
    scores = {}
    for name, output in executed:
        scores[name] = _score(reference, quantized, name, calibration, expected[name], output)
    return [
        scores.get(name) or _score(reference, quantized, name, calibration)
        for name in calibration.layers
    ]


def _score(
    reference: Any,
    quantized: Any,
    name: str,
    calibration: Calibration,
    expected: Tensor | None = None,
    executed: Tensor | None = None,
) -> LayerScore:
    mm.throw_exception_if_processing_interrupted()
    key = f"{DIFFUSION}{name}.weight"
    w = patched_float(reference, key)
    loaded = patched_as_loaded(quantized, key)
    w_hat = decoded(loaded)
    record = None if executed is None else calibration.usable(name)
    x = None if record is None else record.tokens.to(w.device, torch.float32)
    shape = (w.shape[0], w.shape[1])
    biases = (_bias(patcher, name) for patcher in (reference, quantized))
    scores = score_weights(
        lambda start, stop: w[start:stop],
        lambda start, stop: w_hat[start:stop],
        shape,
        x,
        difference(*biases),
    )
    known = expected is not None and executed is not None
    return LayerScore(
        name,
        shape,
        _stored_as(quantized, name, loaded),
        scores.weight,
        scores.exact,
        executed_snr(expected, executed, scores.signal) if known else None,
        0 if x is None else len(x),
        "" if known else "never reached",
    )


def _shapes(patcher: Any) -> dict[str, tuple[int, int]]:
    network = patcher.model.diffusion_model
    layers = {name: comfy.utils.get_attr(network, name) for name in model_layers(patcher)}
    return {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}


def _bias(patcher: Any, name: str) -> Tensor | None:
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, name)
    return None if layer.bias is None else patched_float(patcher, f"{DIFFUSION}{name}.bias")


def _stored_as(patcher: Any, name: str, weight: Tensor) -> str:
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, name)
    conf = layer.state_dict().get("comfy_quant") if isinstance(weight, QuantizedTensor) else None
    return stored_as(weight) if conf is None else described(decode_conf(conf))
