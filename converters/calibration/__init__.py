"""Statistics of what a model's layers are fed: captured, kept, merged, and checked to belong."""

from .budget import plan_passes
from .calibration import Calibration
from .capture import Capture, capture
from .fingerprint import Fingerprint
from .influence import Influences, measure_influences
from .layers import is_linear
from .record import Record, Summary

__all__ = [
    "Calibration",
    "Capture",
    "Fingerprint",
    "Influences",
    "Record",
    "Summary",
    "capture",
    "is_linear",
    "measure_influences",
    "plan_passes",
]
