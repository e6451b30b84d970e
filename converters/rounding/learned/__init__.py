"""Learned rounding: gradient descent on codes, for every grid and geometry."""

from .options import LearnedOptions
from .solver import learned

__all__ = ["LearnedOptions", "learned"]
