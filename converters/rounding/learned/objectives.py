"""What learned rounding minimises: quadratic forms of the weight error, with their gradients.

Gradients are written out, so nothing here needs or changes autograd, and it runs under
``torch.inference_mode()`` too.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ....errors import RoundsmithError

_POWER_ITERATIONS = 4
_OVERSAMPLING = 10


class Value(NamedTuple):
    """An objective at one error.

    Attributes:
        parts: float32 ``[M, 1]`` where rows count separately, else ``[1, 1]``; their sum is the
            objective.
        gradient: float32 ``[M, N]``, half the derivative by the error.
    """

    parts: Tensor
    gradient: Tensor


class Objective(Protocol):
    """A quadratic form of the weight error ``E = Ŵ − W``, float32 ``[M, N]``.

    Attributes:
        curvature: float32, broadcasts to ``[M, N]``: half the second derivative by each error.
        local: whether codes must stay the neighbours of their weights, because errors the objective
            does not see count too.
    """

    curvature: Tensor
    local: bool

    def __call__(self, error: Tensor) -> Value:
        """The objective and its gradient."""
        ...


class OutputError:
    """``tr(E H Eᵀ)``: the layer's mean squared output error over the calibrated tokens.

    Args:
        moment: float32 ``[N, N]``, the inputs' second moment.
        damping: added to its diagonal, as a share of the diagonal's mean.

    ``H`` is scaled to a mean diagonal of 1, so that losses are comparable to weight errors.
    """

    local = False

    def __init__(self, moment: Tensor, damping: float) -> None:
        mean = moment.diagonal().mean()
        self.moment = moment / mean
        self.moment.diagonal().add_(damping)
        self.curvature = self.moment.diagonal().clamp(min=1e-6)[None, :]

    def __call__(self, error: Tensor) -> Value:
        gradient = error @ self.moment
        return Value(torch.linalg.vecdot(error, gradient)[:, None].clamp_(min=0), gradient)


class ProjectedError:
    """``‖U_kᵀ E V_k‖²``: the weight error as the weight's largest singular vectors see it.

    Args:
        left: float32 ``[M, k]``, orthonormal columns.
        right: float32 ``[N, k]``, orthonormal columns.
    """

    local = True

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self._left, self._right = left, right
        rows = left.square().sum(dim=1, keepdim=True)
        columns = right.square().sum(dim=1)[None, :]
        product = rows * columns
        # Weights no kept vector sees have no curvature: a floor keeps them from being thrown far.
        self.curvature = product.clamp_(min=float(product.mean()) * 0.1 + 1e-12)

    def __call__(self, error: Tensor) -> Value:
        seen = (self._left.T @ error) @ self._right
        gradient = self._left @ (seen @ self._right.T)
        return Value(seen.square().sum().view(1, 1), gradient)


def kept_rank(shape: tuple[int, int], top_p: float, min_k: int, max_k: int) -> int:
    """How many singular vectors the projection keeps: ``top_p`` of the rank, within bounds."""
    rank = min(shape)
    return min(rank, max_k, max(min_k, math.floor(top_p * rank)))


def singular_vectors(w: Tensor, k: int, *, full: bool, seed: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest singular vectors of ``w [M, N]``: ``[M, k]`` and ``[N, k]``.

    A randomised range finder with ``k + 10`` directions and four power iterations (Halko,
    Martinsson and Tropp, arXiv:0909.4061, algorithm 4.4), or the exact decomposition. The same seed
    gives the same vectors on every device; torch's own random state is neither read nor changed.
    """
    width = min(k + _OVERSAMPLING, *w.shape)
    try:
        if full or width == min(w.shape):
            u, _, vt = torch.linalg.svd(w, full_matrices=False)
            return u[:, :k].contiguous(), vt[:k].T.contiguous()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(w.shape[1], width, generator=generator).to(w.device)
        basis = torch.linalg.qr(w @ drawn).Q
        for _ in range(_POWER_ITERATIONS):
            basis = torch.linalg.qr(w @ torch.linalg.qr(w.T @ basis).Q).Q
        inner, _, vt = torch.linalg.svd(basis.T @ w, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise RoundsmithError(
            f"learned rounding: singular vectors of a {w.shape[0]}×{w.shape[1]} weight did not "
            f"converge ({error}); choose rounding 'nearest' for this layer"
        ) from error
    return (basis @ inner[:, :k]).contiguous(), vt[:k].T.contiguous()
