"""Where a run is, and sizes as people read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a conversion is.

    Attributes:
        layer: name of the tensor in hand.
        index, count: it is the ``index``-th of ``count``, from 1.
        bytes_done, bytes_total: source bytes behind, and of the whole.
        gain: mean gain in output SNR over nearest rounding of the layers solved so far, dB; None
            before there is one.
    """

    layer: str
    index: int
    count: int
    bytes_done: int
    bytes_total: int
    gain: float | None = None


def human_bytes(count: float) -> str:
    """``1536`` → ``1.5 KB``; decimal units, as shops and browsers count."""
    for unit in ("B", "KB", "MB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
