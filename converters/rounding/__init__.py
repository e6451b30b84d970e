"""Solvers: tensors in, codes and scales out. They see a grid and a geometry, never a packing or a
file.
"""

from .nearest import nearest
from .scale_search import scale_search

__all__ = ["nearest", "scale_search"]
