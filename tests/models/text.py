"""A text encoder of CLIP-L's shape with weights from a fixed seed: nothing to download.

ComfyUI's stock ``CLIPLoader`` (type ``stable_diffusion``) loads the generated file and
``CLIPTextEncode`` turns a prompt into a context [77, 768] and a pooled vector [768]. The weights
are random, yet a random transformer keeps different words apart, which is all a model trained
against it needs.

The weights come from the raw output of PCG64, whose stream numpy guarantees, mapped to uniform
values: the file is the same, byte for byte, on every platform. :func:`encode` computes here what
ComfyUI computes there, so neither training nor the demo needs ComfyUI.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

SEED = 20_240_801
VOCABULARY, POSITIONS, WIDTH, HEADS, LAYERS, INNER = 49_408, 77, 768, 12, 12, 3072
START, END = 49_406, 49_407

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = tuple(f"a handwritten {name}" for name in NAMES)

# The byte-pair codes of the few words used here; CLIP's own tokenizer gives the same.
WORDS = {
    **dict(zip(NAMES, (5848, 637, 1237, 2097, 2721, 3127, 4093, 5757, 7910, 7330), strict=True)),
    **{str(digit): 271 + digit for digit in range(10)},
    **{"a": 320, "the": 518, "of": 539, "an": 550, "handwritten": 35192, "digit": 27472},
    **{"number": 2842, "drawing": 3610, "picture": 1674},
}


def shapes() -> dict[str, tuple[tuple[int, ...], float]]:
    """Every tensor of the encoder: name -> (shape, standard deviation); 0 = zeros, -1 = ones."""
    spread = 1 / math.sqrt(WIDTH)
    prefix = "text_model.embeddings"
    table: dict[str, tuple[tuple[int, ...], float]] = {
        f"{prefix}.token_embedding.weight": ((VOCABULARY, WIDTH), 0.5),
        f"{prefix}.position_embedding.weight": ((POSITIONS, WIDTH), 0.2),
    }
    linears = {
        **{f"self_attn.{part}_proj": (WIDTH, WIDTH, spread) for part in "qkv"},
        "self_attn.out_proj": (WIDTH, WIDTH, 0.5 * spread),
        "mlp.fc1": (INNER, WIDTH, spread),
        "mlp.fc2": (WIDTH, INNER, 0.5 / math.sqrt(INNER)),
    }
    norms = ["text_model.final_layer_norm"]
    for layer in range(LAYERS):
        prefix = f"text_model.encoder.layers.{layer}"
        for name, (rows, columns, deviation) in linears.items():
            table[f"{prefix}.{name}.weight"] = ((rows, columns), deviation)
            table[f"{prefix}.{name}.bias"] = ((rows,), 0.0)
        norms += [f"{prefix}.layer_norm1", f"{prefix}.layer_norm2"]
    for norm in norms:
        table[f"{norm}.weight"] = ((WIDTH,), -1.0)
        table[f"{norm}.bias"] = ((WIDTH,), 0.0)
    table["text_projection.weight"] = ((WIDTH, WIDTH), spread)
    return table


def draw(name: str, shape: tuple[int, ...], deviation: float) -> Tensor:
    """The float16 tensor called ``name``: uniform with this standard deviation, zeros or ones."""
    if deviation <= 0:
        return torch.full(shape, -deviation, dtype=torch.float16)
    count = math.prod(shape)
    raw = np.random.PCG64([SEED, zlib.crc32(name.encode())]).random_raw((count + 3) // 4)
    values = raw.astype("<u8", copy=False).view("<u2")[:count].astype(np.float32)
    values = (values - np.float32(32767.5)) * np.float32(deviation * math.sqrt(3) / 32767.5)
    return torch.from_numpy(values.astype(np.float16)).reshape(shape)


def weights() -> Iterator[tuple[str, Tensor]]:
    """All tensors of the encoder, one after another (246 MB together)."""
    for name, (shape, deviation) in shapes().items():
        yield name, draw(name, shape, deviation)


def write_encoder(path: Path) -> None:
    """Write the encoder as a safetensors file that ComfyUI's ``CLIPLoader`` takes for CLIP-L."""
    save_file(dict(weights()), path, metadata={"roundsmith": "demo text encoder, random weights"})


def tokenize(prompt: str) -> list[int]:
    """Codes of a prompt made of the known words, padded to 77 as ComfyUI pads for CLIP-L."""
    words = prompt.lower().split()
    unknown = [word for word in words if word not in WORDS]
    if unknown:
        raise ValueError(f"unknown word {unknown[0]!r}; known: {' '.join(WORDS)}")
    codes = [START, *(WORDS[word] for word in words), END]
    return codes + [END] * (POSITIONS - len(codes))


@torch.no_grad()
def encode(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Context [B, 77, 768] and pooled vector [B, 768], float32, of each prompt."""
    codes = torch.tensor([tokenize(prompt) for prompt in prompts])
    last = (codes == END).int().argmax(dim=1)
    source, shape = {}, shapes()

    def get(name: str) -> Tensor:
        if name not in source:
            source[name] = draw(name, *shape[name]).float()
        return source[name]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, get(f"{name}.weight"), get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), get(f"{name}.weight"), get(f"{name}.bias"))

    embeddings = "text_model.embeddings"
    x = get(f"{embeddings}.token_embedding.weight")[codes]
    x = x + get(f"{embeddings}.position_embedding.weight")
    for layer in range(LAYERS):
        prefix = f"text_model.encoder.layers.{layer}"
        source.clear()
        normed = norm(x, f"{prefix}.layer_norm1")
        q, k, v = (
            linear(normed, f"{prefix}.self_attn.{part}_proj").unflatten(-1, (HEADS, -1))
            for part in "qkv"
        )
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{prefix}.self_attn.out_proj")
        inner = linear(norm(x, f"{prefix}.layer_norm2"), f"{prefix}.mlp.fc1")
        x = x + linear(inner * torch.sigmoid(1.702 * inner), f"{prefix}.mlp.fc2")
    x = norm(x, "text_model.final_layer_norm")
    return x, x[torch.arange(len(prompts)), last]
