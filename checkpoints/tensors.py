"""What the format stores: dtype names, sizes, and one tensor's description."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""safetensors' dtype names and the torch dtypes that hold them."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_BYTES = 2**63 - 1
"""What an int64 offset reaches; torch's sizes and strides end there too."""

_SUB_BYTE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # known to the format, opaque to us

Entry: TypeAlias = (
    tuple[torch.dtype | str, tuple[int, ...]] | tuple[torch.dtype | str, tuple[int, ...], int]
)
"""A tensor to write: dtype (torch's, or safetensors' name), shape, bytes of an unknown dtype."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a header describes it.

    ``dtype`` None means opaque: the bytes can be copied, not interpreted. ``offset`` is the first
    byte, counted from the start of ``file``.
    """

    name: str
    dtype_name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int

    @property
    def entry(self) -> Entry:
        """What ``CheckpointWriter`` takes to copy this tensor as it stands."""
        return (self.dtype_name, self.shape, self.nbytes)


def byte_count(dtype_name: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor; None where the dtype is unknown or its elements do not fill bytes."""
    dtype = DTYPES.get(dtype_name)
    bits = 8 * dtype.itemsize if dtype else _SUB_BYTE_BITS.get(dtype_name)
    if bits is None or math.prod(shape) * bits % 8:
        return None
    return math.prod(shape) * bits // 8
