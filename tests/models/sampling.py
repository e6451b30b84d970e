"""Euler sampling of a flow-matching model, on the schedule ComfyUI calls ``simple``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

TRAINING_STEPS = 1000  # resolution of the schedule the sampler picks from


def simple_schedule(steps: int) -> Tensor:
    """``steps`` evenly picked noise levels from 1 downwards, then 0; float32 [steps + 1]."""
    stride = TRAINING_STEPS / steps
    levels = [(TRAINING_STEPS - int(index * stride)) / TRAINING_STEPS for index in range(steps)]
    return torch.tensor([*levels, 0.0])


def starting_noise(count: int, seed: int, size: int = 8, channels: int = 16) -> Tensor:
    """The noise a stock ComfyUI sampler draws on a CPU for this seed and batch, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


@torch.no_grad()
def sample(
    model: nn.Module,
    noise: Tensor,
    context: Tensor,
    pooled: Tensor,
    steps: int = 12,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Integrate from ``noise`` [B, C, H, W] to a latent of the same shape.

    ``context`` [B, T, width] and ``pooled`` [B, width] condition each sample of the batch.
    ``on_step(done, steps)`` is called after every step and may raise to stop.
    """
    levels, x = simple_schedule(steps), noise
    for index in range(steps):
        level = levels[index].expand(x.shape[0]).to(x)
        x = x + (levels[index + 1] - levels[index]).to(x) * model(x, level, context, pooled)
        if on_step is not None:
            on_step(index + 1, steps)
    return x
