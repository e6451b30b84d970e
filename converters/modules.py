"""Quantize a module in memory, to run at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from ..checkpoints import decode_conf
from ..layouts import get_format
from .calibration import Calibration
from .engine import CancelCallback, ProgressCallback, convert
from .recipe import Recipe
from .report import Report
from .source import Entries, MemorySink, MemorySource


def quantize_module(
    module: nn.Module,
    recipe: Recipe | None = None,
    *,
    calibration: Calibration | str | Path | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> tuple[nn.Module, Report]:
    """Quantize the linear layers of ``module`` in place.

    Each ``nn.Linear`` that the recipe takes gets a ``QuantizedTensor`` of its own dtype and device
    as weight, with no gradient; with ``calibration``, or the file of one, biases are corrected for
    the mean error.
    Everything else is untouched. Copy the module first to keep the original.

    Returns:
        The module itself, and the report.
    """
    if isinstance(calibration, (str, Path)):
        calibration = Calibration.load(calibration)
    recipe = (recipe or Recipe()).in_memory
    linears = dict(_linears(module))
    tensors = {f"{name}.weight": linear.weight for name, linear in linears.items()}
    biases = {f"{n}.bias": linear.bias for n, linear in linears.items() if linear.bias is not None}
    source = MemorySource({**tensors, **biases})
    sinks: list[MemorySink] = []

    def open_sink(entries: Entries, metadata: Mapping[str, str]) -> MemorySink:
        sinks.append(MemorySink(entries, metadata))
        return sinks[-1]

    report = convert(source, open_sink, recipe, progress, cancel, calibration)
    for layer in report.layers:
        if layer.action == "quantize":
            _replace(linears[layer.name], layer.name, layer.format, sinks[-1])
    return module, report


def _linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers with a floating weight, each weight once."""
    seen: set[int] = set()
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear) and id(child.weight) not in seen and name:
            seen.add(id(child.weight))
            if child.weight.dtype.is_floating_point and type(child.weight.data) is torch.Tensor:
                yield name, child


def _replace(linear: nn.Linear, name: str, format_id: str, sink: MemorySink) -> None:
    parts = {
        key.rpartition(".")[2]: tensor.to(linear.weight.device)
        for key, tensor in sink.tensors.items()
        if key.rpartition(".")[0] == name
    }
    conf = decode_conf(parts.pop("comfy_quant"))
    if "bias" in parts:
        linear.bias.data.copy_(parts.pop("bias"))
    shape = (linear.out_features, linear.in_features)
    weight = get_format(format_id).read(parts, conf, shape, linear.weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
