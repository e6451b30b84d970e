"""When learning is over before its last iteration."""

from __future__ import annotations

from collections.abc import Callable

from .options import LearnedOptions
from .schedules import Improvement

WINDOW = 25  # steps over which a gain is measured


class EarlyStop:
    """Loss, rate or progress so small that further steps are wasted.

    Args:
        options: the thresholds.
        warmup: steps before gains count: what the optimizer needs to find its stride.
    """

    def __init__(self, options: LearnedOptions, warmup: int = 0) -> None:
        self._options = options
        self._steps = -warmup
        self._before: float | None = None

    def reason(
        self, loss: float, rate: float, progress: Improvement, best: Callable[[], float]
    ) -> str | None:
        """Why to stop after this step: "loss", "rate", "stall" or "gain"; or None.

        Args:
            loss: this step's loss.
            rate: the rate of the next step.
            progress: what the losses did so far.
            best: the objective of the best codes so far; asked for now and then.
        """
        options = self._options
        if loss <= options.stop_loss:
            return "loss"
        if rate <= options.stop_lr:
            return "rate"
        if progress.stalled >= options.stop_stall:
            return "stall"
        self._steps += 1
        if options.stop_gain and self._steps > 0 and self._steps % WINDOW == 0:
            before, self._before = self._before, best()
            if before is not None and self._before > before * (1 - options.stop_gain):
                return "gain"
        return None
