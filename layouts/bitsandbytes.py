"""What bitsandbytes keeps of a four-bit weight: its tables, its JSON, and scales quantized again.

Tables are by code. NF4 is QLoRA's (arXiv:2305.14314); FP4 has a sign, two exponent bits and one of
mantissa, over 12, by bit pattern; AF4 is for blocks of 64 (Yoshida 2023, arXiv:2306.06965), from
the largest value down, as bitsandbytes lists it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import FormatError

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_HALF = tuple(x / 12 for x in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
AF4 = (
    *(1.0, 0.72424863, 0.55496234, 0.42563882, 0.31675666, 0.21961274, 0.12934483, 0.04273164),
    *(0.0, -0.04934812, -0.14982478, -0.25607552, -0.3736951, -0.51243739, -0.69441008, -1.0),
)
FP4 = (*_HALF, *(-x for x in _HALF))


def read_state(tensor: Tensor, name: str) -> dict[str, Any]:
    """The JSON object in a tensor; ``name`` is for errors. Raises :class:`FormatError`."""
    try:
        state = json.loads(bytes(tensor.cpu().tolist()))
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"tensor {name!r} does not hold JSON: {error}; fetch it again") from error
    if not isinstance(state, dict):
        raise FormatError(f"tensor {name!r} holds no JSON object; fetch the file again")
    return state


def read_absmax(parts: Mapping[str, Tensor]) -> Tensor:
    """Scales of a layer, float32 ``[B]``, decoded where they are codes under scales of their own.

    Args:
        parts: ``absmax``; and, where it is codes, ``nested_quant_map``, ``nested_absmax`` and
            ``quant_state``, whose JSON has ``nested_blocksize`` and ``nested_offset``.

    Raises:
        FormatError: something is missing.
    """
    if "absmax" not in parts:
        raise FormatError("its scales, absmax, are missing; fetch the file again")
    absmax = parts["absmax"].reshape(-1)
    if "nested_absmax" not in parts:
        return absmax.float()
    if absmax.is_meta:
        return torch.empty(absmax.shape, dtype=torch.float32, device="meta")
    try:
        state = read_state(parts["quant_state"], "quant_state")
        values = parts["nested_quant_map"].float()[absmax.long()]
        size, offset = int(state["nested_blocksize"]), float(state["nested_offset"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"its scales are quantized, but {error} is missing or wrong") from error
    outer = parts["nested_absmax"].float().repeat_interleave(size)[: len(values)]
    return values * outer + offset
