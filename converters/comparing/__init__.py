"""A quantized model beside its reference: SNRs of outputs, of steps and of each layer; pictures."""

from .comparison import Comparison, LayerScore, StepScore
from .files import compare_files
from .modules import compare

__all__ = ["Comparison", "LayerScore", "StepScore", "compare", "compare_files"]
