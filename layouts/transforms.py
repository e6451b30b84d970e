"""ConvRot: rotate groups of input features so that outliers spread before rounding.

Each group of ``g`` inputs is multiplied by the normalised *regular* Hadamard matrix, the Kronecker
power of ``[[1,1,1,−1],[1,1,−1,1],[1,−1,1,1],[−1,1,1,1]]/2``: symmetric and its own inverse.
``W_rot = W · H`` a group; the runtime rotates activations alike, so ``x_rot · W_rotᵀ = x · Wᵀ``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..errors import RecipeError

GROUP_SIZES = (4, 16, 64, 256, 1024)
DEFAULT_GROUP = 256
_H4 = ((1.0, 1.0, 1.0, -1.0), (1.0, 1.0, -1.0, 1.0), (1.0, -1.0, 1.0, 1.0), (-1.0, 1.0, 1.0, 1.0))


@lru_cache(maxsize=16)
def hadamard(size: int, device: str = "cpu") -> Tensor:
    """The normalised regular Hadamard matrix ``[size, size]``, float32; ``size`` a power of 4."""
    if size not in GROUP_SIZES:
        raise RecipeError(f"ConvRot group size {size} is not one of {GROUP_SIZES}")
    base = torch.tensor(_H4, device=device)
    matrix = base
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, base)
    return matrix / size**0.5


def rotate(w: Tensor, group_size: int) -> Tensor:
    """Rotate float32 ``w [M, N]`` in groups of columns that divide ``N``; twice is the identity.

    The matrix is its own transpose; as such it is multiplied in the order comfy-kitchen has, which
    decides the last bit.
    """
    m, n = w.shape
    matrix = hadamard(group_size, str(w.device)).T
    return (w.view(m, n // group_size, group_size) @ matrix).view(m, n)


def largest_group(features: int) -> int | None:
    """The group size "auto" stands for: the largest of 256 and 1024 dividing ``features``."""
    return next((g for g in (1024, 256) if features % g == 0), None)
