"""What the tests of file tools share: files of the peer, hashes of codes, small legacy files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from roundsmith import dev
from roundsmith.checkpoints import Checkpoint
from roundsmith.converters import ModelView

PEER = dev.ROOT / "tests" / "peer" / "files"
CASES = sorted(path.stem for path in PEER.glob("*.safetensors"))
LEGACY = ("legacy_fp8", "legacy_fp8_cleaned")


def peer(case: str) -> Path:
    """A file that convert-to-quant wrote."""
    return PEER / f"{case}.safetensors"


def contents(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Dtype, shape and hash of every tensor of a file."""
    return {
        name: (str(tensor.dtype), tuple(tensor.shape), hashed(tensor))
        for name, tensor in load_file(path).items()
    }


def hashed(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


def codes(path: Path) -> dict[str, str]:
    """Hashes of what a file's weights and biases are, by name."""
    kept = (".weight", ".bias", ".scale")
    return {name: hash_ for name, (_, _, hash_) in contents(path).items() if name.endswith(kept)}


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a file."""
    with safe_open(str(path), "pt") as file:
        return file.metadata() or {}


def decoded(path: Path) -> dict[str, torch.Tensor]:
    """The weights a reader gets, float32."""
    with Checkpoint.open(path) as source:
        model = ModelView(source)
        return {
            name: model.read_rows(name, 0, model.shape(name)[0]).float().clone()
            for name in model.names
            if name.endswith(".weight")
        }


def same_weights(one: Path, other: Path) -> bool:
    """Whether a reader gets the same weights from both files, to the last bit."""
    a, b = decoded(one), decoded(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save(path: Path, tensors: dict[str, torch.Tensor], **text: str) -> Path:
    """Write a file."""
    save_file(tensors, path, text or None)
    return path


def legacy(path: Path, dtype: torch.dtype = torch.float8_e4m3fn, marker: int | None = 0) -> Path:
    """A legacy FP8 file: two layers, one with a measured input scale, an orphan, a stranger."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "blocks.0.a.weight": torch.randn(32, 64, generator=generator).to(dtype),
        "blocks.0.a.scale_weight": torch.tensor([0.5]),
        "blocks.0.a.scale_input": torch.tensor(0.25),
        "blocks.0.b.weight": torch.randn(64, 32, generator=generator).to(dtype),
        "blocks.0.b.scale_weight": torch.tensor(0.125),
        "blocks.0.kept.weight": torch.randn(8, 8, generator=generator).bfloat16(),
        "blocks.0.kept.scale_weight": torch.ones(()),
        "blocks.0.gone.scale_weight": torch.ones(()),
        "stranger.codebook": torch.arange(5),
    }
    if marker is not None:
        tensors["scaled_fp8"] = torch.zeros(marker, dtype=dtype)
    return save(path, tensors, title="old")
