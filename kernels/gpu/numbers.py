"""Number formats inside a kernel: rounding, E4M3, activation functions.

FP8 is coded and decoded by its bits, in float32, so that kernels without a product run on devices
that have no FP8 type, and round alike on all of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

INT8: tl.constexpr = tl.constexpr(0)
E4M3: tl.constexpr = tl.constexpr(1)
E5M2: tl.constexpr = tl.constexpr(2)
KINDS = {torch.int8: 0, torch.float8_e4m3fn: 1, torch.float8_e5m2: 2}
"""How a kernel is told what codes are."""

NONE: tl.constexpr = tl.constexpr(0)
TANH: tl.constexpr = tl.constexpr(1)
ERF: tl.constexpr = tl.constexpr(2)
ACTIVATIONS = {None: 0, "tanh": 1, "none": 2}
"""How a kernel is told an activation: None, or GELU's ``approximate``."""

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def codes_as_bytes(codes: torch.Tensor) -> torch.Tensor:
    """FP8 codes as uint8, which every device can load and store; INT8 as it is."""
    return codes if codes.dtype == torch.int8 else codes.view(torch.uint8)


@triton.jit
def round_even(x: tl.tensor) -> tl.tensor:
    """Nearest integer, ties to even, of float32 ``|x| < 2²²``."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def encode_e4m3(x: tl.tensor) -> tl.tensor:
    """E4M3 bits (uint8) of float32 ``x`` in ±448, to nearest, ties to even."""
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    bits = bits & 0x7FFFFFFF
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    subnormal = round_even(tl.minimum(tl.abs(x), 1.0) * 512.0).to(tl.int32)
    return (sign | tl.where(bits < 0x3C800000, subnormal, normal)).to(tl.uint8)  # 2^-6


@triton.jit
def decode(codes: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """Float32 values of INT8 codes, or of E4M3 or E5M2 bits (uint8)."""
    if kind == INT8:
        values = codes.to(tl.float32)
    elif kind == E4M3:  # float16 has four exponent bits more than are needed: a factor 2^8
        bits = codes.to(tl.int32)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        values = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        values = tl.where((bits & 0x7F) == 0x7F, float("nan"), values)
    else:  # the upper half of a float16
        bits = codes.to(tl.int32) << 8
        values = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return values


@triton.jit
def row_absmax(values: tl.tensor) -> tl.tensor:
    """Largest magnitude of each row of float32 ``values``; NaN where a row has one."""
    bits = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # ordered as magnitudes, NaN above all
    return tl.max(bits, axis=1).to(tl.float32, bitcast=True)


@triton.jit
def scale_of(absmax: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """The scale that maps ``absmax [n]`` to the largest code; never below 1e-30, NaN of NaN."""
    largest: tl.constexpr = 127.0 if kind == INT8 else 448.0
    scale = tl.div_rn(absmax, tl.full(absmax.shape, largest, tl.float32))
    return tl.where(scale < 1e-30, 1e-30, scale)


@triton.jit
def encode(values: tl.tensor, scale: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """Codes of float32 ``values`` under ``scale`` (they broadcast): INT8, or E4M3 bits."""
    if kind == INT8:
        scaled = tl.div_rn(values, tl.broadcast_to(scale, values.shape))
        codes = tl.minimum(tl.maximum(round_even(scaled), -127.0), 127.0).to(tl.int8)
    else:
        scaled = values * tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
        codes = encode_e4m3(tl.minimum(tl.maximum(scaled, -448.0), 448.0))
    return codes


@triton.jit
def activate(x: tl.tensor, activation: tl.constexpr) -> tl.tensor:
    """GELU of float32 ``x``, or ``x``."""
    if activation == TANH:  # 0.5 (1 + tanh u) = 1 / (1 + exp(-2u)), which keeps small results exact
        twice = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        x = x / (1.0 + tl.exp(-twice))
    elif activation == ERF:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x
