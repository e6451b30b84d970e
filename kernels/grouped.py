"""Small codes under scales a row and group: to the INT8 weights they are multiplied as.

For codes of 4 or 6 bits, ``v`` the value of a code and ``s`` its group's scale::

    q[n, k] = clamp(round(v[n, k] · s[n, k // g]), ±127)        ties to even

``v`` is ``codebook[code]`` where there is a codebook, else ``code − 8`` or ``code − 32``. A row is
its nibbles, two a byte, even column low; at 6 bits then the codes' top two bits, four a byte,
column ``4i`` in the lowest.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _unpack_low_first(packed: Tensor) -> Tensor:
    """Two 4-bit codes a byte, even column in the low nibble: ``[M, N/2]`` → uint8 ``[M, N]``."""
    packed = packed.view(torch.uint8)
    return torch.stack((packed & 0x0F, packed >> 4), dim=-1).view(packed.shape[0], -1)


def unpack_six_bits(packed: Tensor) -> Tensor:
    """A nibble plane and a plane of top two bits, ``[M, 3N/4]`` → uint8 0..63, ``[M, N]``."""
    packed = packed.view(torch.uint8)
    columns = packed.shape[1] * 4 // 3
    low, high = packed[:, : columns // 2], packed[:, columns // 2 :]
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device)
    top = (high[:, :, None] >> shifts & 3).view(packed.shape[0], columns)
    return _unpack_low_first(low.contiguous()) | top << 4


def decode_grouped(packed: Tensor, scale: Tensor, codebook: Tensor | None, group: int) -> Tensor:
    """The INT8 weights of packed codes.

    Args:
        packed: ``[M, N/2]`` or ``[M, 3N/4]``, one-byte.
        scale: ``[M, N/g]``, E4M3 or float32.
        codebook: float32 ``[16]``, or None. Only 4-bit codes have one.
        group: ``g``, columns that share a scale.

    Returns:
        int8 ``[M, N]``.
    """
    rows, groups = scale.shape
    six = packed.shape[1] * 4 == groups * group * 3
    codes = unpack_six_bits(packed) if six else _unpack_low_first(packed)
    if codebook is not None:
        values = codebook.to(torch.float32)[codes.long()]
    else:
        values = codes.to(torch.float32).sub_(32.0 if six else 8.0)
    grouped = values.view(rows, groups, group).mul_(scale.to(torch.float32)[:, :, None])
    return grouped.round_().clamp_(-127, 127).to(torch.int8).view(rows, groups * group)
