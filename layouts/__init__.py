"""Formats: grids, geometries, packings, and the tensors that run them."""

from .candidates import Candidate
from .execution import executed_linear
from .format import Format
from .registry import formats, get_format, identify
from .spec import Encoded, Fit, Spec

__all__ = [
    "Candidate",
    "Encoded",
    "Fit",
    "Format",
    "Spec",
    "executed_linear",
    "formats",
    "get_format",
    "identify",
]
