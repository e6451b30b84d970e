"""The sweep: columns rounded one after the other, each making up for what the others lost.

``Ŵ`` is sought for ``W`` so that ``tr(E·H·Eᵀ)`` is small, ``E = W − Ŵ``. Column ``j``'s target is
its weight plus ``Σᵢ feedback[j, i] · E[i]``. With the feedback of a triangular factor of ``H`` and
no errors yet (:func:`sweep`) this is nearest-plane rounding (Babai 1986; OPTQ, Frantar et al. 2023;
LDLQ, Chee et al. 2023). With ``H``'s own rows, scaled to a unit diagonal, and the errors of a
solution it is coordinate descent (:func:`descend`).

Matrices are held transposed, ``[N, M]``, so that a column of weights is contiguous. Work is done in
blocks: what blocks owe to each other is a matrix product, and only what is inside a block goes
column by column.

The sweep is greedy, and what it ends with is partly luck: another choice early in a block leads to
quite other ones later. So each block is rounded in several variants side by side, which differ in
whether its first columns take the nearest value or the one beyond, and each row goes on with the
variant that lost least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .hessian import Factor
from .problem import Poll
from .quantizer import Quantizer

_INNER = 32


def sweep(
    w: Tensor,
    factor: Factor,
    quantizer: Quantizer,
    *,
    variants: int = 1,
    block: int = 128,
    poll: Poll | None = None,
) -> Tensor:
    """Round every column, from the last to the first.

    Args:
        w: float32 ``[N, M]``, transposed weights in the factor's order.
        factor: of the second moment.
        quantizer: rounds a column, in the same order, ``variants`` times side by side.
        variants: ways to round each block; a power of two.
        block: columns whose mutual debts are settled in one matrix product.
        poll: called many times a second.

    Returns:
        The errors, ``w`` less the rounded values: float32 ``[N, M]``.
    """
    n, m = w.shape
    errors = torch.empty_like(w)
    masks = _masks(variants, m, w.device)
    for high in range(n, 0, -block):
        low = max(high - block, 0)
        target = w[low:high].clone()
        if high < n:
            target.addmm_(factor.feedback[low:high, high:], errors[high:])
        feedback = factor.feedback[low:high, low:high]
        if variants == 1:
            _round_block(w[low:high], target, feedback, errors[low:high], quantizer, low, [], poll)
            continue
        wide, target = w[low:high].repeat(1, variants), target.repeat(1, variants)
        lost = torch.empty_like(wide)
        _round_block(wide, target, feedback, lost, quantizer, low, masks, poll)
        missed = target.sub_(wide).add_(lost).square_()
        cost = torch.mv(missed.t(), factor.pivots[low:high]).view(variants, m)
        best = cost.argmin(dim=0).expand(high - low, 1, m)
        errors[low:high] = lost.view(high - low, variants, m).gather(1, best).squeeze(1)
    return errors


def _masks(variants: int, m: int, device: torch.device) -> list[Tensor]:
    """For each of a block's first columns, twice in the variants that take the value beyond."""
    bits = torch.arange(variants, device=device)
    count = (variants - 1).bit_length()
    return [(bits >> bit & 1).mul(2.0).repeat_interleave(m) for bit in range(count)]


def _round_block(
    w: Tensor,
    target: Tensor,
    feedback: Tensor,
    errors: Tensor,
    quantizer: Quantizer,
    first: int,
    masks: list[Tensor],
    poll: Poll | None,
) -> None:
    """Round the columns of a block, ``[b, M]``, whose ``target`` lacks what they owe each other."""
    for high in range(w.shape[0], 0, -_INNER):
        low = max(high - _INNER, 0)
        if poll is not None:
            poll()
        part = target[low:high]
        if high < w.shape[0]:
            part.addmm_(feedback[low:high, high:], errors[high:])
        turned = errors[low:high].zero_().t()
        mine = feedback[low:high, low:high].contiguous()
        columns = zip(
            range(low, high), part.unbind(), mine.unbind(), w[low:high].unbind(),
            errors[low:high].unbind(), strict=True,
        )  # fmt: skip
        for at, column, owed, exact, error in reversed(list(columns)):
            column.addmv_(turned, owed)
            rounded = quantizer.column(column, first + at)
            if at >= w.shape[0] - len(masks):  # 2·(t − v) past t is beyond the midpoint
                beyond = (column - rounded).mul_(masks[w.shape[0] - 1 - at]).add_(column)
                rounded = quantizer.column(beyond, first + at)
            torch.sub(exact, rounded, out=error)


def descend(
    w: Tensor,
    feedback: Tensor,
    quantizer: Quantizer,
    errors: Tensor,
    *,
    block: int = 128,
    poll: Poll | None = None,
) -> None:
    """One pass of coordinate descent: each column rounded anew, given all the others.

    Args:
        w: float32 ``[N, M]``, transposed weights.
        feedback: float32 ``[N, N]``, ``H`` over its diagonal, row by row, with a zero diagonal.
        quantizer: rounds a column, in the same order.
        errors: float32 ``[N, M]``, ``w`` less the values of a solution; overwritten.
        block: columns whose mutual debts are settled in one matrix product.
        poll: called many times a second.
    """
    n = w.shape[0]
    for high in range(n, 0, -block):
        low = max(high - block, 0)
        target = torch.addmm(w[low:high], feedback[low:high], errors)
        before = errors[low:high].clone()
        for top in range(high - low, 0, -_INNER):
            bottom = max(top - _INNER, 0)
            if poll is not None:
                poll()
            part, mine = target[bottom:top], feedback[low + bottom : low + top, low:high]
            if top < high - low:
                part.addmm_(mine[:, top:], errors[low + top : high] - before[top:])
            changes = torch.zeros_like(part)
            turned, mine = changes.t(), mine[:, bottom:top].contiguous()
            here = slice(low + bottom, low + top)
            columns = zip(
                range(low + bottom, low + top), part.unbind(), mine.unbind(), w[here].unbind(),
                errors[here].unbind(), before[bottom:top].unbind(), changes.unbind(), strict=True,
            )  # fmt: skip
            for at, column, owed, exact, error, old, change in reversed(list(columns)):
                column.addmv_(turned, owed)
                torch.sub(exact, quantizer.column(column, at), out=error)
                torch.sub(error, old, out=change)
