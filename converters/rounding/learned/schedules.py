"""Learning-rate schedules: told each step's loss, they say the next rate."""

from __future__ import annotations

import math
from typing import Protocol

from .options import LearnedOptions
from .prodigy import WARMUP_STEPS

# (stalled steps at least, factor) when the loss improved
RAISES = (
    (0, 1.25),
    (50, 1.375),
    (75, 1.5),
    (100, 1.75),
    (125, 2.0),
    (150, 2.25),
    (200, 2.5),
    (250, 2.75),
    (300, 3.0),
)
# (stalled steps at least, factor, the rate's floor) when it did not
DECAYS = (
    (0, 0.95, 9e-8),
    (26, 0.97, 8e-8),
    (51, 0.985, 7e-8),
    (76, 0.9875, 6e-8),
    (101, 0.98875, 5e-8),
    (151, 0.99, 4e-8),
    (201, 0.99125, 3e-8),
    (251, 0.9925, 2e-8),
    (301, 0.995, 5e-9),
)
LARGEST_RATE = 100.0
LARGEST_MULT = 2.0


class Improvement:
    """Whether a loss is enough below the best so far, and for how many steps none was."""

    def __init__(self, threshold: float, mode: str) -> None:
        self.best = math.inf
        self.stalled = 0
        self.ended = 0
        """Stalled steps that the last improvement ended."""
        self._threshold, self._relative = threshold, mode == "rel"

    @classmethod
    def of(cls, options: LearnedOptions) -> Improvement:
        """With the options' threshold."""
        return cls(options.threshold, options.threshold_mode)

    def see(self, loss: float) -> bool:
        """Note a step's loss."""
        margin = self.best * self._threshold if self._relative else self._threshold
        better = loss < self.best - (margin if math.isfinite(self.best) else 0.0)
        if better:
            self.best, self.ended, self.stalled = loss, self.stalled, 0
        else:
            self.stalled += 1
        return better


class Schedule(Protocol):
    """The learning rate from step to step."""

    def next(self, rate: float, improved: bool, progress: Improvement) -> float:
        """The rate after a step at ``rate`` whose loss ``improved`` or did not."""
        ...


class Exponential:
    """``gamma`` times the rate, every step."""

    def __init__(self, gamma: float, least: float) -> None:
        self._gamma, self._least = gamma, least

    def next(self, rate: float, improved: bool, progress: Improvement) -> float:
        return max(rate * self._gamma, min(rate, self._least))


class Plateau:
    """Lower the rate after ``patience`` steps without improvement, then wait ``cooldown`` steps.

    For a matrix of aspect ratio ``a`` patience and cooldown grow by ``√a`` and the decay weakens to
    ``1 − (1 − factor)/√a``, both blended in by ``shape_influence``: at patience 9 and factor 0.92,
    ``a = 4`` gives 18 and 0.96, ``a = 6`` gives 22 and 0.97.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        patience: int,
        factor: float,
        cooldown: int,
        least: float,
        shape_influence: float,
    ) -> None:
        root = math.sqrt(max(shape) / max(min(shape), 1))
        grown = 1 + (root - 1) * shape_influence
        self.patience = round(patience * grown)
        self.cooldown = round(cooldown * grown)
        self.factor = factor + (1 - factor) * (1 - 1 / root) * shape_influence
        self._least = least
        self._stalled = self._waiting = 0

    def next(self, rate: float, improved: bool, progress: Improvement) -> float:
        self._stalled = 0 if improved else self._stalled + 1
        if self._waiting > 0:
            self._waiting -= 1
        elif self._stalled > 0 and self._stalled >= self.patience:
            self._stalled, self._waiting = 0, self.cooldown
            return max(rate * self.factor, min(rate, self._least))
        return rate


class Adaptive:
    """Raise the rate when the loss improved, lower it when not, by tiers of the stall's length.

    Every factor is multiplied by ``small_mult``, which depends on the shape. The bare rule
    overflows for thin matrices, and for elongated ones it turns decays into raises; so
    ``small_mult`` is at most 2, and at least half of each decay stays.
    """

    def __init__(self, shape: tuple[int, int], counter: str, small_mult: float | None) -> None:
        self.small_mult = small_mult_of(shape) if small_mult is None else small_mult
        self._reset = counter == "simple-reset"

    def next(self, rate: float, improved: bool, progress: Improvement) -> float:
        if improved:
            stalled = 0 if self._reset else progress.ended
            raised = [factor for least, factor in RAISES if stalled >= least][-1]
            return min(rate * raised * self.small_mult, LARGEST_RATE)
        decay, floor = [row[1:] for row in DECAYS if progress.stalled >= row[0]][-1]
        factor = min(decay * self.small_mult, (1 + decay) / 2)
        return max(rate * factor, min(rate, floor))


class Delayed:
    """Another schedule that begins after some steps."""

    def __init__(self, steps: int, then: Schedule) -> None:
        self._left, self._then = steps, then

    def next(self, rate: float, improved: bool, progress: Improvement) -> float:
        if self._left > 0:
            self._left -= 1
            return rate
        return self._then.next(rate, improved, progress)


def small_mult_of(shape: tuple[int, int]) -> float:
    """The adaptive schedule's factor for a matrix ``[M, N]``: ``Γ(M^(1/3)/M + 1)`` if square,
    ``100^(M/N²)`` if tall, ``10^(N/M²)`` if wide; at most 2.
    """
    m, n = (max(length, 1) for length in shape)
    if m == n:
        return math.gamma(m ** (1 / 3) / m + 1)
    base, exponent = (100.0, m / n**2) if m > n else (10.0, n / m**2)
    return base ** min(exponent, math.log(LARGEST_MULT, base))


def make_schedule(options: LearnedOptions, shape: tuple[int, int]) -> Schedule:
    """The schedule the options ask for, for a matrix of ``shape``."""
    made: Schedule
    if options.schedule == "exponential":
        made = Exponential(options.gamma, options.lr_min)
    elif options.schedule == "plateau":
        made = Plateau(
            shape,
            options.patience,
            options.factor,
            options.cooldown,
            options.lr_min,
            options.shape_influence,
        )
    else:
        made = Adaptive(shape, options.counter, options.small_mult)
    return Delayed(WARMUP_STEPS, made) if options.optimizer == "prodigy" else made
