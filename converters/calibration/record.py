"""What is known of one layer's inputs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rounding.problem import Activations
from .histogram import percentile

HELD = 512
"""Most tokens set aside; also what the reservoir keeps beside a moment."""

_FEW_HELD = 16  # set aside at least, as long as as many are left to fit
_CALLS = 8  # of so many calls of a layer one is set aside
_ROWS_AT_ONCE = 512


def set_aside(call: int) -> bool:
    """Whether a layer's ``call``, from 0, is set aside: one of eight, the eighth first.

    Which one varies, so that it is not always the same step of a sampling run or the same half of
    classifier-free guidance; it is the same for every layer and every run.
    """
    block = call // _CALLS
    return call % _CALLS == (zlib.crc32(b"%d" % block) % _CALLS if block else _CALLS - 1)


def held_rows(rows: int, moment: bool) -> int:
    """How many of ``rows`` kept tokens are of calls set aside, once there are such calls: most of
    them beside a second moment, which has the others; else an eighth, at most :data:`HELD`.
    """
    return min(rows * 3 // 4 if moment else rows // 8, HELD)


@dataclass(frozen=True)
class Summary:
    """The numbers of a record, known without reading its tensors.

    Attributes:
        features: width of an input token, N.
        count: finite tokens seen.
        nonfinite: tokens left out because a value was NaN or Inf.
        capacity: tokens the reservoir could hold.
        kept: tokens it holds.
        moment_count: tokens measured into the moment; None where there is no moment.
        held: tokens it holds of calls that nothing else of is kept; they are set aside.
        held_seen: tokens seen in such calls.
    """

    features: int
    count: int
    nonfinite: int
    capacity: int
    kept: int
    moment_count: int | None
    held: int = 0
    held_seen: int = 0

    @property
    def available(self) -> int:
        """Tokens that rounding can learn from."""
        return self.kept + (self.moment_count or 0)

    @property
    def set_aside(self) -> int:
        """How many of those nothing is fitted to (see :attr:`Record.held_count`)."""
        if self.held:
            return min(self.held, HELD)
        share = max(self.available // 8, min(_FEW_HELD, self.available // 2))
        return min(share, HELD, self.kept)


@dataclass(frozen=True, eq=False)
class Record:
    """Statistics of the inputs of a layer, or of several that are fed by the same tensor.

    Attributes:
        features: width of an input token, N.
        count: finite tokens seen; ``mean``, ``absmax`` and ``histogram`` are over all of them.
        nonfinite: tokens left out because a value was NaN or Inf.
        capacity: tokens the reservoir could hold.
        mean: float32 ``[N]``.
        absmax: float32 ``[N]``, largest magnitude of each feature.
        histogram: int64 ``[BINS]`` of ``|x|`` over all features (see ``histogram.py``).
        tokens: bfloat16 ``[k, N]``: first ``held`` of the calls set aside, then of the others, each
            a uniform sample without replacement, in random order.
        moment: float32 ``[N, N]``, mean of x·xᵀ over the tokens that are not in ``tokens``, those
            of calls set aside left out; or None where only the sample was kept.
        moment_count: tokens measured into ``moment``.
        held: how many of ``tokens`` are of calls set aside (see :func:`set_aside`); 0 where there
            were too few calls.
        held_seen: tokens seen in those calls.
    """

    features: int
    count: int
    nonfinite: int
    capacity: int
    mean: Tensor
    absmax: Tensor
    histogram: Tensor
    tokens: Tensor
    moment: Tensor | None = None
    moment_count: int = 0
    held: int = 0
    held_seen: int = 0

    @property
    def summary(self) -> Summary:
        """The numbers without the tensors."""
        seen = None if self.moment is None else self.moment_count
        kept = self.tokens.shape[0]
        return Summary(
            self.features, self.count, self.nonfinite, self.capacity, kept, seen, self.held,
            self.held_seen,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        tensors = (self.mean, self.absmax, self.histogram, self.tokens, self.moment)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def percentile(self, p: float) -> float:
        """The magnitude that ``p`` percent of all input values do not exceed; 100: the maximum."""
        return percentile(self.histogram, p, float(self.absmax.max()) if self.features else 0.0)

    def problem(self) -> str:
        """Why nothing can be rounded against this record, or ""."""
        if self.count == 0:
            return f"all its {self.nonfinite} tokens held NaN or Inf" if self.nonfinite else "empty"
        tensors = {"mean": self.mean, "absmax": self.absmax, "tokens": self.tokens}
        if self.moment is not None:
            tensors["moment"] = self.moment
        bad = [name for name, t in tensors.items() if not _finite(t)]
        if bad:
            return f"its statistics hold NaN or Inf ({', '.join(bad)})"
        if bool((self.absmax < 0).any()) or bool((self.histogram < 0).any()):
            return "its statistics are damaged: a magnitude or a count is negative"
        return ""

    def fitted_mean(self) -> Tensor:
        """float32 ``[N]``: the mean without the tokens that :meth:`split` sets aside."""
        held = self.tokens[: self.held_count]
        count = self.count - len(held)
        if count < 1:
            return self.mean
        total = self.mean.double() * self.count - held.double().sum(0)
        return (total / count).float()

    def mean_square(self) -> Tensor:
        """float32 ``[N]``: mean of x² over the tokens kept and measured; the importance of columns.
        """
        total = torch.zeros(self.features)
        for rows in self.tokens.split(_ROWS_AT_ONCE):
            total += rows.float().square().sum(0)
        if self.moment is not None:
            total += self.moment.diagonal() * self.moment_count
        return total / max(self.summary.available, 1)

    def split(self, device: torch.device | str | None = None) -> Activations:
        """The tokens to fit as a second moment, and those set aside, which nothing is fitted to.

        Args:
            device: where to compute and leave the result; None: on the CPU.
        """
        device = torch.device(device or "cpu")
        held = self.held_count
        count = self.summary.available - held
        moment = torch.zeros(self.features, self.features, device=device)
        if self.moment is not None:
            moment.copy_(self.moment).mul_(self.moment_count)
        for rows in self.tokens[held:].split(_ROWS_AT_ONCE):
            rows = rows.to(device=device, dtype=torch.float32)
            moment.addmm_(rows.T, rows)
        moment /= max(count, 1)
        aside = self.tokens[:held].to(device=device, dtype=torch.float32)
        return Activations(moment, count, aside, apart=self.held >= _FEW_HELD)

    @property
    def held_count(self) -> int:
        """How many of ``tokens``, from the front, :meth:`split` sets aside.

        Where there were enough calls, an eighth of the calls: an error on them is what other calls
        will see. Tokens beside fitted ones of the same sentence or picture would read better than
        that. Of fewer calls, an eighth of the tokens, at most 512; of few tokens, a handful. They
        are the front of a random sample, so the choice is always the same.
        """
        return self.summary.set_aside


def _finite(t: Tensor) -> bool:
    """Whether no value is NaN or Inf: both show in the least or the largest one."""
    return not t.numel() or all(bool(x.isfinite()) for x in torch.aminmax(t))
