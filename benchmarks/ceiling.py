"""What rounding inputs costs by itself: unrounded weights, inputs as INT8 products round them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from roundsmith.converters.plan import TensorPlan
from roundsmith.kernels.activations import quantize_rows
from roundsmith.layouts.transforms import rotate

RIDGES = tuple(1e-5 * 10**step for step in range(5))
"""Shares of the inputs' mean square tried as ridge."""

Affine = tuple[Tensor, Tensor | None]
"""Weight ``[M, N]`` and bias ``[M]`` of a layer, float32."""


@contextmanager
def inputs_in_int8(
    module: nn.Module, layers: Sequence[TensorPlan], instead: Mapping[str, Affine] | None = None
) -> Iterator[None]:
    """Round the inputs of ``module``'s layers to INT8, a scale a token, while inside.

    Layers whose weights the plan rotates have their inputs rotated, rounded, and turned back.
    ``instead``: multiplied in place of the layers' own weights.
    """
    parts = dict(module.named_modules())
    with ExitStack() as stack:
        for t in layers:
            hook = parts[t.layer].register_forward_pre_hook(_rounding(_convrot(t)))
            stack.callback(hook.remove)
            if instead:
                other = parts[t.layer].register_forward_hook(_multiplying(*instead[t.layer]))
                stack.callback(other.remove)
        yield


def in_int8(x: Tensor, convrot: int) -> Tensor:
    """Floating ``[..., N]`` rounded to INT8 codes, one scale a token, and decoded again."""
    rows = x.reshape(-1, x.shape[-1]).float()
    rows = rotate(rows, convrot) if convrot else rows
    codes, scales = quantize_rows(rows, torch.int8, rows.shape[1])
    rows = codes.float() * scales
    rows = rotate(rows, convrot) if convrot else rows  # its own inverse
    return rows.view(x.shape).to(x.dtype)


def fit_to_int8(
    module: nn.Module,
    layers: Sequence[TensorPlan],
    run: Callable[[], object],
    aside: Callable[[int], bool],
) -> dict[str, Affine]:
    """The weights and biases that serve rounded inputs best: with ``X`` the inputs that ``run``
    feeds a layer and ``Q`` those rounded, the least squares of ``X·Wᵀ + b − Q·Vᵀ − c``.

    A ridge keeps ``V`` by ``W``; calls set aside choose it, or the weights as they are: those that
    ``aside`` says so of, by the call's number. Inputs of a modulation are alike in all samples of a
    prompt, so that it is the steps that must differ.
    """
    parts = dict(module.named_modules())
    sums = {t.layer: _Sums(_convrot(t), aside) for t in layers}
    with ExitStack() as stack:
        for name, found in sums.items():
            stack.callback(parts[name].register_forward_pre_hook(found.add).remove)
        run()
    return {name: found.fit(parts[name]) for name, found in sums.items()}


class _Sums:
    """Second moments of a layer's inputs, of calls to fit and of calls set aside.

    ``self.of``: float32 ``[2, 2, N + 1, N + 1]``, each ``QᵀQ`` and ``DᵀQ``, ``D = Q − X``; the last
    input is a constant 1, whose weight is the bias.
    """

    def __init__(self, convrot: int, aside: Callable[[int], bool]) -> None:
        self.convrot, self.aside = convrot, aside
        self.calls, self.of = 0, torch.zeros(())

    def add(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward-pre-hook."""
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        rounded = in_int8(rows, self.convrot)
        q = nn.functional.pad(rounded, (0, 1), value=1.0)
        d = nn.functional.pad(rounded - rows, (0, 1))
        if not self.of.ndim:
            self.of = torch.zeros(2, 2, *q.shape[1:] * 2)
        mine = self.of[int(self.aside(self.calls))]
        for total, left in zip(mine, (q, d), strict=True):
            total.addmm_(left.T, q)
        self.calls += 1

    def fit(self, module: Any) -> Affine:
        """Weights and bias for the inputs seen."""
        weight, bias = module.weight.detach().double(), module.bias
        one = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
        w = torch.cat((weight, one[:, None]), dim=1)
        free = torch.arange(w.shape[1] - (bias is None))
        fitted, held = self.of.double()

        def change(moments: Tensor, ridge: float) -> Tensor:
            a = moments[0][free][:, free]
            a.diagonal()[: weight.shape[1]] += ridge * a.diagonal()[: weight.shape[1]].mean()
            found = torch.zeros_like(w)
            found[:, free] = -torch.linalg.solve(a, (w @ moments[1])[:, free].T).T
            return found

        def gain(change: Tensor) -> float:
            """By how much the squared error on calls set aside falls."""
            return -float(((change @ held[0] + 2 * (w @ held[1])) * change).sum())

        gains = {ridge: gain(change(fitted, ridge)) for ridge in RIDGES}
        ridge = max(gains, key=gains.__getitem__)
        best = w + change(fitted + held, ridge) if gains[ridge] > 0 else w
        best = best.float()
        return best[:, :-1].contiguous(), None if bias is None else best[:, -1].contiguous()


def _convrot(t: TensorPlan) -> int:
    assert t.spec is not None
    return t.spec.convrot or 0


def _rounding(convrot: int) -> Callable[..., Any]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (in_int8(inputs[0], convrot), *inputs[1:])

    return hook


def _multiplying(weight: Tensor, bias: Tensor | None) -> Callable[..., Any]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        x = inputs[0]
        return nn.functional.linear(x.float(), weight, bias).to(x.dtype)

    return hook
