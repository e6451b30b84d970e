"""Weights that the fixtures and the comparison of conversions are made of; needs only torch."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix(seed: int, m: int, n: int) -> Tensor:
    """A float32 ``[m, n]`` with rows and columns of differing size and some outliers."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.exp(0.4 * torch.randn(m, 1, generator=rng))
    cols = torch.exp(0.3 * torch.randn(1, n, generator=rng))
    w = 0.02 * torch.randn(m, n, generator=rng) * rows * cols
    outliers = torch.randint(0, m * n, (max(1, m * n // 2000),), generator=rng)
    w.view(-1)[outliers] *= 8
    return w


def by_blocks(w: Tensor, kind: str, largest: float) -> tuple[Tensor, Tensor]:
    """``w`` divided by absmax scales of the legacy shape ``kind``, and those scales."""
    m, n = w.shape
    absmax = {
        "tensor": lambda: w.abs().amax(),
        "one": lambda: w.abs().amax().reshape(1),
        "row": lambda: w.abs().amax(1),
        "column": lambda: w.abs().amax(1, keepdim=True),
        "block": lambda: w.abs().reshape(m // 64, 64, n // 64, 64).amax((1, 3)),
        "block3d": lambda: w.abs().reshape(m, n // 64, 64).amax(2, keepdim=True),
        "lode": lambda: w.abs().reshape(m, n // 64, 64).amax(2),
    }[kind]()
    scale = absmax / largest
    grid = scale.reshape(-1, 1) if scale.ndim < 2 else scale.reshape(scale.shape[0], -1)
    full = grid.repeat_interleave(m // grid.shape[0], 0)
    return w / full.repeat_interleave(n // grid.shape[1], 1), scale
