"""Device operations on block-scaled matrices: an eager PyTorch reference, and hardware products."""

from .blocks import block_view, blockwise_absmax, dequantize, expand_scale
from .four_bit import dequantize_4bit, linear_4bit
from .products import hardware_product, scaled_linear

__all__ = [
    "block_view",
    "blockwise_absmax",
    "dequantize",
    "dequantize_4bit",
    "expand_scale",
    "hardware_product",
    "linear_4bit",
    "scaled_linear",
]
