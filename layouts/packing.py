"""Packings: how codes and scales lie in a file. Packing sees codes and scales only."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometries import E8M0_BIAS, Geometry


def pack_high_first(codes: Tensor) -> Tensor:
    """Two 4-bit codes a byte, even column in the high nibble: uint8 ``[M, N]`` → ``[M, N/2]``."""
    return (codes[:, ::2] << 4) | codes[:, 1::2]


def unpack_high_first(packed: Tensor) -> Tensor:
    """Inverse of :func:`pack_high_first`."""
    if packed.is_meta:
        return _shape_only(packed)
    return torch.stack((packed >> 4, packed & 0x0F), dim=-1).view(packed.shape[0], -1)


def pack_low_first(codes: Tensor) -> Tensor:
    """Two 4-bit codes a byte, even column in the low nibble: ``[M, N]`` → INT8 ``[M, N/2]``.

    Codes are uint8, or int8 in two's complement, of which the low four bits are kept.
    """
    codes = codes.view(torch.uint8)
    return ((codes[:, ::2] & 0x0F) | (codes[:, 1::2] << 4)).view(torch.int8)


def unpack_low_first(packed: Tensor) -> Tensor:
    """Inverse of :func:`pack_low_first`: uint8 0..15, ``[M, N]``."""
    packed = packed.view(torch.uint8)
    if packed.is_meta:
        return _shape_only(packed)
    return torch.stack((packed & 0x0F, packed >> 4), dim=-1).view(packed.shape[0], -1)


def pack_six_bits(codes: Tensor) -> Tensor:
    """6-bit codes as nibbles, then their top two bits: uint8 0..63 → INT8 ``[M, 3N/4]``.

    ``N`` is a multiple of 4. The inverse is :func:`roundsmith.kernels.unpack_six_bits`.
    """
    top = (codes >> 4).view(codes.shape[0], -1, 4)
    high = top[..., 0] | top[..., 1] << 2 | top[..., 2] << 4 | top[..., 3] << 6
    return torch.cat((pack_low_first(codes), high.view(torch.int8)), dim=1)


def _shape_only(packed: Tensor) -> Tensor:
    """Unpacked codes without values. Bit operations on such tensors import torch's compiler, which
    takes longer than everything that shapes are asked for."""
    return packed.new_empty((packed.shape[0], 2 * packed.shape[1]))


def pack_flat(codes: Tensor) -> Tensor:
    """Two 4-bit codes a byte over the row-major matrix, the even element in the high nibble: uint8
    ``[M, N]`` → ``[⌈M·N/2⌉]``. An odd one out has a low nibble of 0."""
    flat = codes.reshape(-1)
    if flat.numel() % 2:
        flat = torch.nn.functional.pad(flat, (0, 1))
    return (flat[::2] << 4) | flat[1::2]


def unpack_flat(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Inverse of :func:`pack_flat` for a matrix of ``shape``."""
    if packed.is_meta:
        return packed.new_empty(shape)
    flat = packed.reshape(-1)
    codes = torch.stack((flat >> 4, flat & 0x0F), dim=-1).view(-1)
    return codes[: shape[0] * shape[1]].view(shape)


def flat_scales(cells: Tensor, geometry: Geometry, columns: int) -> Tensor:
    """A scale grid over a matrix's cells as one scale a flat block: ``[Mb, Nb]`` → ``[B]``."""
    return cells.reshape(-1)[:: geometry.run(columns)].clone(memory_format=torch.contiguous_format)


def flat_cells(scales: Tensor, geometry: Geometry, shape: tuple[int, int]) -> Tensor:
    """Inverse of :func:`flat_scales` for a matrix of ``shape``."""
    rows, cols = geometry.grid_shape(shape)
    spread = scales.reshape(-1).repeat_interleave(geometry.run(shape[1]))
    return spread[: rows * cols].view(rows, cols)


def blocked_shape(rows: int, cols: int) -> tuple[int, int]:
    """Stored shape of a scale grid in cuBLAS's tiled layout (tiles of 128 × 4)."""
    return -(-rows // 128) * 128, -(-cols // 4) * 4


def block_scales(scales: Tensor) -> Tensor:
    """Arrange a scale grid ``[Mb, Nb]`` in cuBLAS's tiled layout, padded with zeros.

    A tile is 128 × 4; in it come, for each row modulo 32, its four rows 32 apart. As
    comfy-kitchen's ``to_blocked``, whose import brings torch's compiler along.
    """
    rows, cols = scales.shape
    padded = scales.new_zeros(blocked_shape(rows, cols))
    padded[:rows, :cols] = scales
    tiles = padded.view(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(padded.shape)


def unblock_scales(stored: Tensor, rows: int, cols: int) -> Tensor:
    """Inverse of :func:`block_scales` for a grid of ``rows × cols``."""
    padded = blocked_shape(rows, cols)
    tiles = stored.reshape(padded[0] // 128, padded[1] // 4, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(padded)[:rows, :cols]


def to_e8m0(scales: Tensor) -> Tensor:
    """Powers of two (0 for an all-zero block) as biased exponents, uint8."""
    exponent = torch.frexp(scales).exponent - 1 + E8M0_BIAS
    return exponent.clamp_(0, 254).masked_fill_(scales == 0, 0).to(torch.uint8)


def from_e8m0(stored: Tensor) -> Tensor:
    """Float32 scales of biased exponents; exponent 0 stands for an all-zero block."""
    exponent = stored.view(torch.uint8).to(torch.int32) - E8M0_BIAS
    scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
    return scale.masked_fill_(exponent == -E8M0_BIAS, 0.0)
