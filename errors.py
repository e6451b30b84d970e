"""The exceptions: each message names the file, the tensor or the setting, and the way out."""

from __future__ import annotations


class RoundsmithError(ValueError):
    """Base of every error a person can cause and mend."""


class CheckpointError(RoundsmithError):
    """A file that cannot be read as a checkpoint, or cannot be written."""


class DestinationExistsError(CheckpointError):
    """The destination is there already and ``overwrite`` was not given."""


class FormatError(RoundsmithError):
    """An unknown format, or stored tensors that contradict the format they claim."""


class RecipeError(RoundsmithError):
    """A setting that is unknown, out of range, or contradicts another."""


class Cancelled(RoundsmithError):  # noqa: N818 - an outcome, not a fault
    """The person cancelled the run; nothing was left under the destination's name."""


class QualityError(RoundsmithError):
    """A quantized model that is farther from its reference than was allowed.

    Attributes:
        comparison: everything that was measured, a
            :class:`~roundsmith.converters.comparing.Comparison`.
    """

    def __init__(self, message: str, comparison: object = None) -> None:
        super().__init__(message)
        self.comparison = comparison
