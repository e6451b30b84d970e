"""What a checkpoint holds, what is suspicious about it, and which loaders read it."""

from .inspect import inspect_file
from .inspection import Inspection, LayerInfo, Suspicion

__all__ = ["Inspection", "LayerInfo", "Suspicion", "inspect_file"]
