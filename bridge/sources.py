"""A loaded model's weights as a source for the engine: LoRAs baked, quantized layers as stored."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import comfy.lora
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..converters.source import Description
from ..layouts import formats
from .stored import file_tensors, original_tensor, patched_float

COMPUTED_AT_ONCE = 3


def is_linear(module: nn.Module) -> bool:
    """A linear layer of ComfyUI's own, with nothing of a subclass's in its way."""
    return type(module).__name__ == "Linear" and hasattr(module, "forward_comfy_cast_weights")


class PatchedWeights:
    """Tensors of one part of a ModelPatcher's model, as they run.

    Weights with patches are float32 and computed when read, one at a time. Layers that are
    quantized already and have no patches appear as in a file: codes, scales and JSON. All others
    keep their dtype.

    Args:
        patcher: the ModelPatcher. It is read, never changed.
        prefix: full name of the part with a dot, as ``"diffusion_model."``; names here are without.
    """

    def __init__(self, patcher: Any, prefix: str) -> None:
        self.patcher = patcher
        self.prefix = prefix
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, Description] = {}
        self.not_linear: list[str] = []
        """Layers with a 2-D weight that is not a linear layer's: never to be quantized."""
        self.baked: set[str] = set()
        """Keys of the patches that are in the tensors."""
        self._ready: dict[str, Tensor] = {}
        self._computed: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        module = comfy.utils.get_attr(patcher.model, prefix[:-1]) if prefix else patcher.model
        for name, part in module.named_modules(remove_duplicate=False):
            self._add_module(f"{name}." if name else "", part)

    def _add_module(self, dot: str, module: nn.Module) -> None:
        weight = module._parameters.get("weight")
        if weight is not None:
            weight = original_tensor(self.patcher, f"{self.prefix}{dot}weight")
        quantized = isinstance(weight, QuantizedTensor)
        derived = {s for fmt in formats().values() for s in fmt.part_names} - {"weight"}
        linear = is_linear(module)
        if quantized and linear and self._is_readable(module, f"{self.prefix}{dot}weight"):
            stored = file_tensors(module, weight)
            self._ready.update({dot + suffix: tensor for suffix, tensor in stored.items()})
            for suffix, tensor in stored.items():
                self.tensors[dot + suffix] = Description(tensor.dtype, tuple(tensor.shape))
        for own, parameter in module._parameters.items():
            if parameter is None or dot + own in self.tensors:
                continue
            if quantized and (own in derived or (own == "weight" and not linear)):
                continue  # what is not a linear layer stays quantized as it is
            self._add(dot + own)
        if weight is not None and weight.ndim == 2 and not linear:
            self.not_linear.append(dot[:-1])
        for own, buffer in module._buffers.items():
            if buffer is not None and own not in module._non_persistent_buffers_set:
                self._add(dot + own)

    def _is_readable(self, module: nn.Module, key: str) -> bool:
        """Whether the engine can take a quantized layer as stored."""
        return key not in self.patcher.patches and getattr(module, "quant_format", "") in formats()

    def _add(self, name: str) -> None:
        key = self.prefix + name
        tensor = original_tensor(self.patcher, key)
        shape, dtype = tuple(tensor.shape), tensor.dtype
        patches = self.patcher.patches.get(key)
        if patches:
            self.baked.add(key)
            shape = tuple(comfy.lora.calculate_shape(patches, tensor, key))
        if patches or isinstance(tensor, QuantizedTensor):
            dtype = torch.float32
        self.tensors[name] = Description(dtype, shape)

    def _get(self, name: str) -> Tensor:
        """One tensor, where it lies; what has patches or is decoded is computed, on the CPU."""
        if name in self._ready:
            return self._ready[name]
        key = self.prefix + name
        tensor = original_tensor(self.patcher, key)
        if key not in self.patcher.patches and not isinstance(tensor, QuantizedTensor):
            return tensor.detach()
        with self._lock:  # workers ask for rows of a tensor, and may be a few tensors apart
            if name not in self._computed:
                self._computed[name] = patched_float(self.patcher, key).cpu().contiguous()
                while len(self._computed) > COMPUTED_AT_ONCE:
                    self._computed.popitem(last=False)
            return self._computed[name]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU; not to be written to."""
        return self._get(name).cpu().contiguous()

    def read_rows(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of one tensor; only they leave the GPU."""
        rows = self._get(name)[start:stop]
        if out is None:
            return rows.cpu().contiguous()
        out[: stop - start].copy_(rows)
        return out[: stop - start]

    def read_bytes(self, name: str, start: int, stop: int) -> bytearray:
        """Bytes ``start`` to ``stop`` of one tensor's memory; only they leave the GPU."""
        flat = self._get(name).contiguous().reshape(-1).view(torch.uint8)
        return bytearray(flat[start:stop].cpu().numpy().tobytes())

    def close(self) -> None:
        """Let go of the tensors computed last."""
        self._computed.clear()
