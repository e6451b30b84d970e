"""The quadratic form a layer's output error is measured with, and its triangular factor.

With ``E = W − Ŵ`` the mean squared error of the outputs is ``tr(E·H·Eᵀ)``, ``H`` the second moment
of the inputs. A little of its mean diagonal is added to the diagonal, so that it can be factored
and few tokens are not taken at their word.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import RoundsmithError
from .problem import Poll

_MORE_DAMPING = (1e-4, 1e-3, 1e-2, 1e-1)
_BLOCK = 256


class Factor(NamedTuple):
    """``H`` with columns in ``order``, as ``Fᵀ·diag(pivots)·F``, ``F`` unit upper triangular.

    Columns are rounded from the last to the first: what was lost so far adds
    ``F[j, j+1:] · E[j+1:]`` to column ``j``'s target, and what the column then misses it by counts
    ``pivots[j]`` times its square. (``1/√pivots`` is the diagonal of the Cholesky factor of the
    inverse that OPTQ works with; this form needs no inverse.)

    Attributes:
        order: int64 ``[N]``, where each column was.
        feedback: float32 ``[N, N]``, ``F`` without its diagonal.
        pivots: float32 ``[N]``.
    """

    order: Tensor
    feedback: Tensor
    pivots: Tensor

    def importance(self) -> Tensor:
        """``pivots`` in the columns' own order: what a rounding error costs once later columns have
        made up for what they can."""
        return torch.empty_like(self.pivots).index_copy_(0, self.order, self.pivots)


def damped(moment: Tensor, damping: float) -> Tensor:
    """``moment [N, N]`` + ``damping`` times its mean diagonal, on the diagonal."""
    h = moment.clone()
    h.diagonal().add_(damping * moment.diagonal().mean())
    return h


def factor(h: Tensor, act_order: bool = True, poll: Poll | None = None) -> Factor:
    """Factor ``h``, float32 ``[N, N]``, in float32; else in float64; else damped more.

    Args:
        h: the damped second moment.
        act_order: round columns with the largest diagonal first; else the leftmost.
        poll: called many times a second.

    Raises:
        RoundsmithError: it is not positive definite, however much it is damped.
    """
    order = torch.arange(h.shape[0] - 1, -1, -1, device=h.device)
    if act_order:
        order = torch.argsort(h.diagonal(), stable=True)
    mean = h.diagonal().mean()
    for more in (0.0, *_MORE_DAMPING):
        for dtype in (torch.float32, torch.float64):
            turned = h[order][:, order].to(dtype)
            turned.diagonal().add_(more * mean)
            if _cholesky(turned, poll):
                root = turned.diagonal().clone()
                feedback = turned.div_(root[:, None]).to(torch.float32)
                pivots = root.square_().to(torch.float32)
                if bool(torch.isfinite(feedback).all() & (pivots > 0).all()):
                    feedback.diagonal().zero_()
                    return Factor(order, feedback, pivots)
    raise RoundsmithError(
        "the second moment of the inputs is not positive definite; calibrate again"
    )


def _cholesky(a: Tensor, poll: Poll | None) -> bool:
    """Replace ``a`` by its upper Cholesky factor, block by block; whether there is one."""
    n = a.shape[0]
    for low in range(0, n, _BLOCK):
        if poll is not None:
            poll()
        high = min(low + _BLOCK, n)
        rows = a[low:high, low:]
        if low:
            rows.addmm_(a[:low, low:high].t(), a[:low, low:], alpha=-1.0)
        corner, info = torch.linalg.cholesky_ex(rows[:, : high - low], upper=True)
        if int(info):
            return False
        rows[:, : high - low] = corner
        if high < n:
            rest = rows[:, high - low :]
            rest.copy_(torch.linalg.solve_triangular(corner.t(), rest, upper=False))
    a.triu_()
    return True


def expected_error(found: Factor, held: Tensor) -> float:
    """The squared error of the outputs of ``held [h, N]`` that a sweep with this factor leads to,
    up to a constant that does not depend on the factor.

    What a column is missed by, ``r``, is much like noise of the same size in all columns, and
    errors are ``F⁻¹·r``.
    """
    turned = held[:, found.order]
    solved = torch.linalg.solve_triangular(
        found.feedback, turned, upper=True, left=False, unitriangular=True
    )
    return float(solved.square().sum(dtype=torch.float64))


def expected_gain(h: Tensor, found: Factor) -> float:
    """The gain over nearest rounding that theory bounds, dB: mean diagonal over mean pivot."""
    return 10 * math.log10(float(h.diagonal().mean() / found.pivots.mean()))
