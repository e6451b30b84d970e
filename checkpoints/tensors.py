"""What the format stores: dtype names, sizes, and one tensor's description."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

ITEM_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
    **dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 1),
}
"""Bytes of an element, by safetensors' name of its dtype; ``dtypes`` has torch's for each."""

MAX_BYTES = 2**63 - 1
"""What an int64 offset reaches; torch's sizes and strides end there too."""

_SUB_BYTE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # known to the format, opaque to us

_Dtype: TypeAlias = "torch.dtype | str"
Entry: TypeAlias = "tuple[_Dtype, tuple[int, ...]] | tuple[_Dtype, tuple[int, ...], int]"
"""A tensor to write: dtype (torch's, or safetensors' name), shape, bytes of an unknown dtype."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a header describes it.

    ``offset`` is the first byte, counted from the start of ``file``.
    """

    name: str
    dtype_name: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Torch's dtype; None means opaque: the bytes can be copied, not interpreted."""
        return torch_dtype(self.dtype_name)

    @property
    def entry(self) -> Entry:
        """What ``CheckpointWriter`` takes to copy this tensor as it stands."""
        return (self.dtype_name, self.shape, self.nbytes)


def byte_count(dtype_name: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor; None where the dtype is unknown or its elements do not fill bytes."""
    size = ITEM_SIZES.get(dtype_name)
    bits = 8 * size if size else _SUB_BYTE_BITS.get(dtype_name)
    if bits is None or math.prod(shape) * bits % 8:
        return None
    return math.prod(shape) * bits // 8


def torch_dtype(name: str) -> torch.dtype | None:
    """Torch's dtype of safetensors' name; None where torch has none."""
    from .dtypes import DTYPES

    return DTYPES.get(name)


def dtype_name(dtype: torch.dtype | str) -> str | None:
    """safetensors' name of a dtype, which may be that already; None where it has none."""
    if isinstance(dtype, str):
        return dtype
    from .dtypes import DTYPE_NAMES

    return DTYPE_NAMES.get(dtype)
