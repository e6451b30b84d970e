"""Device operations on block-scaled matrices.

``activations``, ``products``, ``blocks`` and ``four_bit`` are the eager references; ``gpu`` holds
Triton kernels, ``vendors`` other libraries' products. ``operators`` is what the rest of the package
calls: an operation runs as the registry chooses for the device and the case. docs/kernels.md has
the whole picture.
"""

from .blocks import block_view, blockwise_absmax, expand_scale
from .grouped import decode_grouped, unpack_six_bits
from .machine import hardware_product
from .operators import (
    dequantize,
    dequantize_4bit,
    gelu_quantize,
    linear,
    linear_4bit,
    quantize_blocks,
    quantize_rows,
    scaled_linear,
    scaled_linear_quantized,
)

__all__ = [
    "block_view",
    "blockwise_absmax",
    "decode_grouped",
    "dequantize",
    "dequantize_4bit",
    "expand_scale",
    "gelu_quantize",
    "hardware_product",
    "linear",
    "linear_4bit",
    "quantize_blocks",
    "quantize_rows",
    "scaled_linear",
    "scaled_linear_quantized",
    "unpack_six_bits",
]
