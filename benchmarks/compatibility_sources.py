"""What both tools are given: one model that has a layer for each thing they treat unlike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from roundsmith.tests.peer.sources import by_blocks, matrix

Tensors = dict[str, Tensor]
ZERO = "single_blocks.0.zeros"
_LINEARS = {
    "double_blocks.0.img_attn.qkv": (768, 256),
    "double_blocks.0.img_attn.proj": (256, 256),
    "double_blocks.0.img_mlp.0": (512, 256),
    "double_blocks.0.img_mlp.2": (256, 1024),  # the widest ConvRot group
    "single_blocks.0.linear1": (128, 128),  # one block of 128
    "single_blocks.0.modulation.lin": (192, 64),  # a width that 256 does not divide
    "img_in": (56, 48),  # no block of 64 divides it, 16 does
    "txt_in": (50, 40),  # nor does 16: padded where a format pads
    "final_layer.linear": (1, 256),  # one row
}


def model() -> Tensors:
    """The layers above with biases; one in float32, one of zeros; an embedding, a convolution, a
    norm."""
    tensors: Tensors = {}
    for seed, (name, (m, n)) in enumerate(_LINEARS.items()):
        dtype = torch.float32 if name.endswith("img_mlp.0") else torch.bfloat16
        tensors[f"{name}.weight"] = matrix(seed, m, n).to(dtype)
        tensors[f"{name}.bias"] = matrix(100 + seed, m, 1)[:, 0].to(dtype)
    tensors[f"{ZERO}.weight"] = torch.zeros(128, 128).bfloat16()
    tensors["embed_tokens.weight"] = matrix(50, 64, 256).bfloat16()
    tensors["patch_conv.weight"] = matrix(51, 16, 64).reshape(16, 16, 2, 2).float()
    tensors["double_blocks.0.norm.query_norm.scale"] = torch.ones(64).bfloat16()
    return tensors


def text_encoder() -> Tensors:
    """A T5 with a decoder, and an embedding."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    return {
        **{f"{attention}.{n}.weight": matrix(i, 256, 256).bfloat16() for i, n in enumerate("qkvo")},
        "encoder.block.0.layer.0.layer_norm.weight": torch.ones(256).bfloat16(),
        "shared.weight": matrix(8, 64, 256).bfloat16(),
        "decoder.block.0.layer.0.SelfAttention.q.weight": matrix(9, 256, 256).bfloat16(),
    }


def legacy_fp8() -> Tensors:
    """An old ``fp8_scaled`` model: each shape of scales, one measured input scale, an orphan."""
    tensors: Tensors = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for seed, kind in enumerate(("tensor", "one", "row", "block", "block3d")):
        scaled, scale = by_blocks(matrix(seed, 128, 256), kind, 448.0)
        tensors[f"blocks.{seed}.{kind}.weight"] = scaled.to(torch.float8_e4m3fn)
        tensors[f"blocks.{seed}.{kind}.scale_weight"] = scale
    tensors["blocks.0.tensor.scale_input"] = torch.tensor(0.25)
    tensors["blocks.1.one.scale_input"] = torch.ones(())
    tensors["blocks.0.kept.weight"] = matrix(9, 32, 32).bfloat16()
    tensors["blocks.0.kept.scale_weight"] = torch.ones(())
    tensors["blocks.0.gone.scale_weight"] = torch.ones(())
    return tensors


def legacy_int8() -> Tensors:
    """An old INT8 model: ``scale_weight`` of the shapes that say how it was made."""
    tensors: Tensors = {}
    for seed, kind in enumerate(("tensor", "row", "column", "block")):
        scaled, scale = by_blocks(matrix(seed, 128, 256), kind, 127.0)
        tensors[f"blocks.0.{kind}.weight"] = scaled.round().to(torch.int8)
        tensors[f"blocks.0.{kind}.scale_weight"] = scale
    return tensors


SOURCES: dict[str, Callable[[], Tensors]] = {
    "model": model,
    "text_encoder": text_encoder,
    "legacy_fp8": legacy_fp8,
    "legacy_int8": legacy_int8,
}


def write_sources(folder: Path) -> dict[str, Path]:
    """Every source as a file, by name; ``model_nonzero`` is the model less its layer of zeros."""
    paths = {}
    tensors = {name: make() for name, make in SOURCES.items()}
    tensors["model_nonzero"] = {k: v for k, v in model().items() if not k.startswith(ZERO)}
    for name, found in tensors.items():
        paths[name] = folder / f"{name}.safetensors"
        save_file(found, paths[name], {"modelspec.title": "a small model"})
    return paths
