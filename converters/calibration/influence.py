"""How much each layer's errors matter to what the model gives in the end.

One layer at a time behaves as if its weights were rounded coarsely, and the model's output is
compared with what it was. No gradients are needed, so it works with any module, in inference mode,
with weights that are quantized or elsewhere at the moment.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RoundsmithError
from .capture import plain_mode
from .layers import IsLinear, Layers, features, input_of, is_linear, pick, tensors_in

COARSENESS = 0.06
"""Size of the noise relative to a weight row: some four bits; errors then add up."""

Stepped = Callable[[int, int], None]
"""Told how many layers of how many are done; what it raises ends the measurement."""


class Influences:
    """Measures, over any number of calls of a model, how much each of its layers matters.

    A layer's influence is the relative error energy of the model's output that a relative error
    energy of 1 of the layer's own output would make, by what a small one does. 0.1: an error of
    -20 dB in the layer alone is one of -30 dB in the end.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Layers = None,
        *,
        seed: int = 0,
        linear: IsLinear = is_linear,
    ) -> None:
        """Arguments and errors are those of :class:`~.capture.Capture`."""
        self._layers = pick(module, layers, linear)
        self._seed = seed
        self._signal = 0.0
        self._errors = dict.fromkeys(self._layers, 0.0)
        self._noises = dict.fromkeys(self._layers, 0.0)
        self._outputs = dict.fromkeys(self._layers, 0.0)

    def add(self, run: Callable[[], Any], stepped: Stepped | None = None) -> Any:
        """Measure at one more input: calls ``run`` once, and once more for each layer.

        Args:
            run: calls the model with the same input each time; gives its output, a tensor or
                several in any nesting. Random numbers it draws are the same in each call.
            stepped: progress.

        Returns:
            What the first call gave.

        Raises:
            RoundsmithError: the output holds no floating tensor, or NaN or Inf.
        """
        device = next((p.device for m in self._layers.values() for p in m.parameters()), None)
        devices = [device] if device is not None and device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            first = run()
        expected = [t.detach().clone() for t in tensors_in(first) if t.is_floating_point()]
        with plain_mode("cpu"):
            signal = _energy(expected)
        if not 0 < signal < math.inf:
            what = "only 0, or NaN or Inf" if expected else "no tensor of numbers"
            raise RoundsmithError(
                f"the layers' influence cannot be measured: the model's output holds {what}"
            )
        for done, (name, layer) in enumerate(self._layers.items()):
            if stepped is not None:
                stepped(done, len(self._layers))
            with self._disturbed(name, layer), torch.random.fork_rng(devices):
                got = [t for t in tensors_in(run()) if t.is_floating_point()]
            with plain_mode("cpu"):
                self._errors[name] += _difference(expected, got)
        self._signal += signal
        return first

    def finish(self) -> dict[str, float]:
        """The influence of each layer that was reached, and where it is a finite number."""
        found = {}
        for name, noise in self._noises.items():
            if noise > 0 and self._outputs[name] > 0 and self._signal > 0:
                value = self._errors[name] / self._signal / (noise / self._outputs[name])
                if math.isfinite(value):
                    found[name] = value
        return found

    @contextmanager
    def _disturbed(self, name: str, layer: nn.Module) -> Iterator[None]:
        """While one layer's outputs are those of noisy weights."""
        noise: Tensor | None = None
        width = features(layer)

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Any:
            nonlocal noise
            x = input_of(args, kwargs, width)
            if x is None or not isinstance(y, Tensor) or not y.numel():
                return None
            with plain_mode(y.device.type):
                if noise is None:
                    noise = self._noise(name, layer, (y.shape[-1], width), y.device)
                lost = torch.nn.functional.linear(_decoded(x).float(), noise)
                clean = y.float()
                bias = getattr(layer, "bias", None)
                if isinstance(bias, Tensor) and not bias.is_meta:
                    clean = clean - bias.to(y.device, torch.float32)
                self._noises[name] += _energy([lost])
                self._outputs[name] += _energy([clean])
                return (y.float() + lost).to(y.dtype)

        handle = layer.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _noise(
        self, name: str, layer: nn.Module, shape: tuple[int, int], device: torch.device
    ) -> Tensor:
        """float32 ``[M, N]``: as large in each row as a share of the weights there, where these
        can be read.
        """
        where = device if device.type == "cuda" else torch.device("cpu")
        generator = torch.Generator(where).manual_seed(self._seed ^ zlib.crc32(name.encode()))
        noise = torch.randn(shape, generator=generator, device=where).to(device)
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and tuple(weight.shape) == shape and not weight.is_meta:
            size = _decoded(weight.detach()).float().square().mean(1, keepdim=True).sqrt()
            return noise.mul_(size.to(device) * COARSENESS)
        return noise.mul_(COARSENESS / shape[1] ** 0.5)


def measure_influences(
    module: nn.Module,
    run: Callable[[], Any],
    layers: Layers = None,
    seed: int = 0,
    stepped: Stepped | None = None,
) -> dict[str, float]:
    """How much the errors of each linear layer of ``module`` matter to what ``run()`` gives.

    ::

        calibration.influences = measure_influences(model, lambda: model(inputs))

    Takes as long as one run more than there are layers. Nothing stays on the module. Arguments and
    errors are those of :class:`Influences` and its ``add``.
    """
    measured = Influences(module, layers, seed=seed)
    measured.add(run, stepped)
    return measured.finish()


def _decoded(x: Tensor) -> Tensor:
    """The tensor, or what it stands for if it is quantized."""
    quantized = type(x) not in (Tensor, nn.Parameter) and hasattr(x, "dequantize")
    return x.dequantize() if quantized else x


def _energy(tensors: list[Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors)


def _difference(expected: list[Tensor], got: list[Tensor]) -> float:
    return sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(expected, got, strict=True)
    )
