"""A small model in three states: as trained, quantized, and what went through it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from roundsmith import Recipe, quantize_file
from roundsmith.converters.calibration import Calibration, capture

SHAPES = {
    "double_blocks.0.img_attn.qkv": (192, 64),
    "double_blocks.0.img_mlp.0": (256, 64),
    "double_blocks.1.img_attn.proj": (64, 64),
    "single_blocks.0.linear1": (448, 64),
}


@dataclass
class Model:
    """Files, and the statistics of correlated inputs with large means."""

    folder: Path
    original: Path
    calibration: Calibration

    def quantized(self, format: str = "float8_e4m3fn", **options: object) -> Path:
        """A quantized file."""
        path = self.folder / f"{format}.safetensors"
        recipe = Recipe(format=format, preset=None, **options)
        quantize_file(self.original, path, recipe, overwrite=True)
        return path


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """The model in the test's folder."""
    g = torch.Generator().manual_seed(0)
    network, tensors = nn.Module(), {"img_in.scale": torch.ones(3)}
    for name, (m, n) in SHAPES.items():
        w = torch.randn(m, n, generator=g).bfloat16()
        tensors[f"{name}.weight"] = w
        tensors[f"{name}.bias"] = torch.randn(m, generator=g).bfloat16()
        linear = nn.Linear(n, m, bias=False)
        linear.weight.data = w.float()
        parent = network
        *path, last = name.split(".")
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, linear)
    save_file(tensors, tmp_path / "original.safetensors", metadata={"modelspec.title": "small"})
    mixing = torch.randn(64, 64, generator=g) * torch.logspace(-1, 1, 64) / 8
    linears = [child for child in network.modules() if isinstance(child, nn.Linear)]

    def run(module: nn.Module, x: torch.Tensor) -> None:
        for linear in linears:
            linear(x.clone())

    with capture(network) as calibration:
        for _ in range(4):
            run(network, torch.randn(300, 64, generator=g) @ mixing + 1)
    return Model(tmp_path, tmp_path / "original.safetensors", calibration)


def contents(path: Path) -> dict[str, bytes]:
    """Bytes of every tensor of a file."""
    return {
        name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in load_file(path).items()
    }
