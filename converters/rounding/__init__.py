"""Solvers: tensors in, codes and scales out. They see a grid and a geometry, never a packing or a
file.
"""

from .calibrated import CalibratedOptions, calibrated
from .codebook import fit_codebook
from .learned import LearnedOptions, learned
from .nearest import nearest
from .problem import MIN_TOKENS, Activations, Poll, Solution
from .scale_search import scale_search
from .searched import searched

__all__ = [
    "MIN_TOKENS",
    "Activations",
    "CalibratedOptions",
    "LearnedOptions",
    "Poll",
    "Solution",
    "calibrated",
    "fit_codebook",
    "learned",
    "nearest",
    "scale_search",
    "searched",
]
