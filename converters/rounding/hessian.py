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
_BLOCKS, _LEAST_BLOCK = 32, 16


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


def factor(
    h: Tensor, act_order: bool = True, poll: Poll | None = None, order: Tensor | None = None
) -> Factor:
    """Factor ``h``, float32 ``[N, N]``, in float32; else in float64; else damped more.

    Args:
        h: the damped second moment.
        act_order: round the columns first whose errors cost most, and no other column can make up
            for; else the leftmost.
        poll: called many times a second.
        order: int64 ``[N]``, the order to take, in which factoring is several times faster.

    Raises:
        RoundsmithError: it is not positive definite, however much it is damped.
    """
    for more in (0.0, *_MORE_DAMPING):
        for dtype in (torch.float32, torch.float64):
            tried = damped(h.to(dtype), more) if more else h.to(dtype)
            found = _cholesky(tried, act_order, poll) if order is None else _ordered(tried, order)
            if found is not None:
                taken, feedback = found
                root = feedback.diagonal().clone()
                feedback = feedback.div_(root[:, None]).to(torch.float32)
                pivots = root.square_().to(torch.float32)
                if bool(torch.isfinite(feedback).all() & (pivots > 0).all()):
                    feedback.diagonal().zero_()
                    return Factor(taken, feedback, pivots)
    raise RoundsmithError(
        "the second moment of the inputs is not positive definite; calibrate again"
    )


def _cholesky(h: Tensor, act_order: bool, poll: Poll | None) -> tuple[Tensor, Tensor] | None:
    """An order of the columns, int64 ``[N]``, and the upper Cholesky factor ``[N, N]`` of ``h`` in
    it; None if there is none.

    The product of the pivots is the same in any order; their sum, which the error grows with, is
    least where they are alike. They fall from the first to the last, as more columns are accounted
    for; so the column that has least left is taken next each time (sorted QR, Wübben et al. 2001),
    a block of them at a time, which costs 0.02 dB against one by one.
    """
    n = h.shape[0]
    block = max(n // _BLOCKS, _LEAST_BLOCK)
    root, order = torch.zeros_like(h), torch.arange(n - 1, -1, -1, device=h.device)
    left = h.diagonal().clone()  # of each column's diagonal, the columns so far accounted for
    for low in range(0, n, block):
        if poll is not None:
            poll()
        high = min(low + block, n)
        if act_order:
            order[low:high] = torch.topk(left, high - low, largest=False).indices
        mine = order[low:high]
        rows = h[mine]
        if low:
            rows.addmm_(root[:low, mine].t(), root[:low], alpha=-1.0)
        corner, info = torch.linalg.cholesky_ex(rows[:, mine], upper=True)
        if int(info):
            return None
        solved = torch.linalg.solve_triangular(corner.t(), rows, upper=False)
        root[low:high] = solved
        left.sub_(solved.square_().sum(dim=0))[mine] = torch.inf
    for low in range(0, n, block):  # a block of rows at a time: no second matrix of this size
        root[low : low + block] = root[low : low + block, order]
    return order, root.triu_()


def _ordered(h: Tensor, order: Tensor) -> tuple[Tensor, Tensor] | None:
    """As :func:`_cholesky`, in a given order."""
    root, info = torch.linalg.cholesky_ex(h[order][:, order], upper=True)
    return None if int(info) else (order, root)


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
