"""What rounding inputs costs by itself: exact weights, inputs as INT8 products round them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from roundsmith.converters.plan import TensorPlan
from roundsmith.kernels.activations import quantize_rows
from roundsmith.layouts.transforms import rotate


@contextmanager
def inputs_in_int8(module: nn.Module, layers: Sequence[TensorPlan]) -> Iterator[None]:
    """Round the inputs of ``module``'s layers to INT8, a scale a token, while inside.

    Layers whose weights the plan rotates have their inputs rotated, rounded, and turned back.
    """
    parts = dict(module.named_modules())
    with ExitStack() as stack:
        for t in layers:
            assert t.spec is not None
            hook = parts[t.layer].register_forward_pre_hook(_rounding(t.spec.convrot or 0))
            stack.callback(hook.remove)
        yield


def in_int8(x: Tensor, convrot: int) -> Tensor:
    """Floating ``[..., N]`` rounded to INT8 codes, one scale a token, and decoded again."""
    rows = x.reshape(-1, x.shape[-1]).float()
    rows = rotate(rows, convrot) if convrot else rows
    codes, scales = quantize_rows(rows, torch.int8, rows.shape[1])
    rows = codes.float() * scales
    rows = rotate(rows, convrot) if convrot else rows  # its own inverse
    return rows.view(x.shape).to(x.dtype)


def _rounding(convrot: int) -> Callable[..., Any]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (in_int8(inputs[0], convrot), *inputs[1:])

    return hook
