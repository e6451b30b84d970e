"""Input ranges of layers that nothing was measured of: estimates, and called so.

Both take a token of N inputs to have a root mean square of 1, as behind a norm layer. *Random*
knows nothing more. *LoRA-informed* takes the directions of inputs from the down matrices of LoRAs:
their gradients are sums of the layer's inputs, so their rows have its outlier features.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints import Checkpoint
from ...errors import CheckpointError
from .names import LayerNames

_DOWN = re.compile(
    r"(?:\.lora_A(?:\.default)?(?:\.weight)?|[._]lora[._]down\.weight"
    r"|\.lora_linear_layer\.down\.weight)$"
)
LARGEST_SIDE = 1 << 16  # inputs of a layer; more than any model has


def random_inputs(
    features: int, samples: int, seed: int, layer: str, device: torch.device
) -> Tensor:
    """Gaussian inputs ``[samples, features]``, float32; the same for a layer whatever the order."""
    return torch.randn(samples, features, generator=_generator(seed, layer)).to(device)


def lora_inputs(
    directions: Tensor, samples: int, seed: int, layer: str, device: torch.device
) -> Tensor:
    """Inputs ``[samples, N]``, float32: Gaussian mixtures of ``directions [r, N]``, each token's
    root mean square 1.
    """
    weights = torch.randn(samples, directions.shape[0], generator=_generator(seed, layer))
    x = weights.to(device) @ directions.to(device=device, dtype=torch.float32)
    return x / x.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def range_of(x: Tensor, percentile: float) -> tuple[float, float]:
    """The magnitude that ``percentile`` percent of ``x`` do not exceed, and the largest one."""
    sizes = x.abs().flatten()
    largest = float(sizes.amax())
    if percentile == 100:
        return largest, largest
    rank = min(int(percentile / 100 * sizes.numel()) + 1, sizes.numel())
    return float(sizes.kthvalue(rank).values), largest


def read_directions(paths: Iterable[str | Path], names: LayerNames) -> dict[str, Tensor]:
    """The down matrices of LoRAs by layer, those of several put together: float32 ``[r, N]``.

    ``names`` are the model's layers; matrices of others are left out. Raises CheckpointError,
    naming the file and the tensor, for a file without a LoRA of any of them, for NaN, Inf, zeros,
    and for widths that differ.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        used = 0
        with Checkpoint.open(path) as source:
            for name, info in source.tensors.items():
                layer = names.find(_DOWN.sub("", name)) if _DOWN.search(name) else None
                if layer is None or len(info.shape) != 2 or info.shape[1] > LARGEST_SIDE:
                    continue
                rows = source.read(name).float()
                if not bool(rows.isfinite().all()) or not bool(rows.any()):
                    raise CheckpointError(
                        f"{path}: {name!r} holds NaN, Inf or only zeros: use another LoRA"
                    )
                if layer in found and found[layer].shape[1] != rows.shape[1]:
                    raise CheckpointError(
                        f"{path}: {name!r} has {rows.shape[1]} inputs where an earlier LoRA has "
                        f"{found[layer].shape[1]}: use LoRAs of one model"
                    )
                found[layer] = torch.cat([found[layer], rows]) if layer in found else rows
                used += 1
        if not used:
            raise CheckpointError(
                f"{path} holds no LoRA of a layer that takes an input scale: use one trained on "
                "this model, or the random mode"
            )
    return found


def _generator(seed: int, layer: str) -> torch.Generator:
    # torch looks at 32 bits of a seed.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {layer}".encode()))
