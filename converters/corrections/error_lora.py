"""The best low-rank correction of a rounding error.

With E = W − Ŵ and H the second moment of a layer's inputs, ``L Lᵀ = H``, a correction ``B·A``
leaves an error of ``‖(E − B·A) L‖²`` in the outputs. By Eckart–Young it is least for rank r where
``B = U`` and ``A = Uᵀ E``, U the first r left singular vectors of ``E L``. What is left,
``E − U Uᵀ E``, is E projected, so no output of any input gets worse, whatever H is. Without
statistics H is the identity, and ``B·A`` the truncated SVD of E.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = (0.01, 0.1, 1.0, 10.0)
"""Added to H's diagonal, relative to itself; more where the factorisation fails."""

_FULL = 512  # matrices with a side up to this are factored exactly
_OVERSAMPLING = 32
_ITERATIONS = 16


def error_lora(
    w: Tensor, w_hat: Tensor, rank: int, moment: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Low-rank factors of ``W − Ŵ`` so that ``Ŵ + B·A`` is nearest to ``W``.

    Args:
        w: float32 ``[M, N]``, a layer's weight.
        w_hat: float32 ``[M, N]``, its quantized weight decoded: unpadded, ConvRot undone.
        rank: r; more than ``min(M, N)`` is taken as that.
        moment: float32 ``[N, N]``, mean of x·xᵀ over the layer's inputs; the outputs' error is
            minimised. None, or all zeros: the weights'.
        seed: of the sketch that large matrices are factored by.

    Returns:
        ``A [r, N]`` and ``B [M, r]``, float32, contiguous, on the device of ``w``. Row i of A and
        column i of B are of equal norm, so that 16-bit copies lose little.

    Raises:
        ValueError: shapes that do not fit each other, NaN or Inf, or a rank below 1.
    """
    if w.shape != w_hat.shape or (moment is not None and moment.shape != (w.shape[1],) * 2):
        shape = None if moment is None else tuple(moment.shape)
        raise ValueError(
            f"weight {tuple(w.shape)}, quantized weight {tuple(w_hat.shape)} and moment {shape} "
            "do not fit each other"
        )
    if rank < 1:
        raise ValueError(f"the rank is {rank}; it must be at least 1")
    error = w - w_hat
    weighted = error if moment is None else error @ square_root(moment)
    if not bool(weighted.isfinite().all()):
        raise ValueError("the weights or the moment hold NaN or Inf")
    vectors = leading_vectors(weighted if bool(weighted.any()) else error, rank, seed)
    return _balanced(vectors.T @ error, vectors)


def square_root(moment: Tensor) -> Tensor:
    """Lower triangular ``L [N, N]`` with ``L Lᵀ`` = the damped moment, float32.

    Features are scaled to one size first, so that a few huge ones do not drown the others in
    rounding errors and damping. A factorisation that fails is tried again in float64, then with
    more damping. Raises ValueError where nothing helps (NaN, Inf, far from positive).
    """
    sizes = moment.diagonal().clamp_min(0).sqrt()
    alive = torch.where(sizes > 0, sizes, 1.0)
    scaled = moment / alive[:, None] / alive
    for damping in _DAMPING:
        for dtype in (torch.float32, torch.float64):
            damped = scaled.to(dtype, copy=True)
            damped.diagonal().fill_(1 + damping)
            factor, info = torch.linalg.cholesky_ex(damped)
            if int(info) == 0 and bool(factor.isfinite().all()):
                return factor.float() * sizes[:, None]
    raise ValueError("the moment holds NaN or Inf, or is not positive")


def leading_vectors(x: Tensor, rank: int, seed: int = 0) -> Tensor:
    """The left singular vectors of ``x [M, N]`` with the largest singular values: ``[M, r]``.

    Those of large matrices are found by subspace iteration on a seeded sketch (Halko, Martinsson
    and Tropp, 2011, algorithm 4.4), whose cost grows as r·M·N. What they hold of ``‖x‖²`` falls
    short of the exact ones by less than half a per cent on white noise, whose spectrum is nearly
    flat; by less where it falls.
    """
    rank = min(rank, *x.shape)
    width = rank + _OVERSAMPLING
    if min(x.shape) <= max(_FULL, 2 * width):
        vectors: Tensor = torch.linalg.svd(x, full_matrices=False)[0]
        return vectors[:, :rank]
    generator = torch.Generator().manual_seed(seed)
    basis = x @ torch.randn(x.shape[1], width, generator=generator).to(x)
    basis = torch.linalg.qr(basis)[0]
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(x.T @ basis)[0]
        basis = torch.linalg.qr(x @ basis)[0]
    within = torch.linalg.svd(basis.T @ x, full_matrices=False)[0]
    return (basis @ within)[:, :rank]


def _balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a_norm, b_norm = a.norm(dim=1), b.norm(dim=0)
    ratio = (b_norm / a_norm).sqrt()
    ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)
    return (a * ratio[:, None]).contiguous(), (b / ratio).contiguous()
