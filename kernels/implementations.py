"""The table of implementations: what each operation can run on, preferred first.

Every function takes ``(machine, case, *arguments of the reference)``. Triton is imported when it is
first chosen. Preferences without autotuning, and why:

- INT8 linear with one scale a row: comfy-kitchen's fused CUDA kernel; it rounds inputs in their own
  dtype, where the others round in float32.
- INT8 products: Triton's, which scales and adds the bias before anything is written; cuBLAS writes
  INT32 sums first. Turing has no INT8 product in Triton: cuBLAS.
- FP8 products with one scale a row: cuBLAS, which does all of that itself. By blocks: Triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import activations, blocks, four_bit, products, vendors
from .machine import Machine
from .registry import EAGER, Case, Implementation, call, register
from .tiles import Tile
from .tuning import tile_for

_CODES = (torch.int8, torch.float8_e4m3fn)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


# ---- what a machine and a case allow ------------------------------------------------------------


def _elementwise(machine: Machine, case: Case) -> bool:
    """Triton kernels without a product: any NVIDIA device that Triton drives."""
    return machine.triton and case.float_dtype in _FLOATS


def _coded(machine: Machine, case: Case) -> bool:
    return _elementwise(machine, case) and case.dtype in _CODES


def _decodable(machine: Machine, case: Case) -> bool:
    return _elementwise(machine, case) and case.dtype in (*_CODES, torch.float8_e5m2)


def _block_fits(machine: Machine, case: Case) -> bool:
    """A block of weights is kept in registers."""
    return _coded(machine, case) and (case.rows == 1 or case.rows * case.group <= 1 << 15)


def _triton_product(machine: Machine, case: Case) -> bool:
    """8-bit tensor cores under Triton; groups are read in steps of at least 32 columns."""
    generation = (8, 0) if case.dtype == torch.int8 else (8, 9)
    steps = case.groups == 1 or case.group % 32 == 0
    enough = case.k >= 32 and case.n >= 16
    return _coded(machine, case) and machine.at_least(*generation) and steps and enough


def _triton_requantized(machine: Machine, case: Case) -> bool:
    return _triton_product(machine, case) and case.out_group in (32, 64, 128, 256)


def _torch_int8(machine: Machine, case: Case) -> bool:
    return case.dtype == torch.int8 and machine.type == "cuda" and machine.int8


def _torch_float8(machine: Machine, case: Case) -> bool:
    """cuBLAS multiplies whole sixteens."""
    rounded = case.groups == 1 and case.float_dtype == torch.bfloat16
    runs = machine.float8_rows if rounded else machine.float8_sums
    return runs and _torch_float8_rounded(machine, case, any_groups=True)


def _torch_float8_rows(machine: Machine, case: Case) -> bool:
    return case.groups == 1 and _torch_float8(machine, case)


def _torch_float8_rounded(machine: Machine, case: Case, any_groups: bool = False) -> bool:
    """What comes out in bfloat16 only, for results in other dtypes too: better than no product."""
    whole = case.group % 16 == 0 and case.n % 16 == 0
    right = case.dtype == torch.float8_e4m3fn and machine.float8_rows
    return right and whole and (any_groups or case.groups == 1)


def _torch_float8_blocks(machine: Machine, case: Case) -> bool:
    whole = case.group == case.rows == 128 and case.groups % 4 == 0
    right = case.dtype == torch.float8_e4m3fn and case.float_dtype == torch.bfloat16
    return machine.float8_blocks and whole and right


def _kitchen_int8(machine: Machine, case: Case) -> bool:
    rows = case.dtype == torch.int8 and case.groups == 1 and case.rows in (1, case.n)
    return machine.type == "cuda" and rows and vendors.kitchen_accelerates_int8()


def _codes(machine: Machine, case: Case) -> bool:
    return machine.type != "cpu" and machine.multiplies(case.dtype, case.groups)


def _decoded(machine: Machine, case: Case) -> bool:
    return _decodable(machine, case) and not machine.multiplies(case.dtype, case.groups)


def _few_rows(machine: Machine, case: Case) -> bool:
    """A product of tensor cores from Ampere on; bytes and groups must not be cut by a row."""
    even = case.k % 2 == 0 and case.group % 2 == 0 and case.k >= 32
    half = case.float_dtype in (torch.bfloat16, torch.float16)
    return _elementwise(machine, case) and machine.at_least(8) and even and half and case.t <= 16


# ---- running them -------------------------------------------------------------------------------


def _quantize_rows(machine: Machine, case: Case, *arguments: Any) -> tuple[Tensor, Tensor]:
    from .gpu import quantize

    return quantize.quantize_rows(*arguments)


def _quantize_blocks(machine: Machine, case: Case, *arguments: Any) -> tuple[Tensor, Tensor]:
    from .gpu import quantize

    return quantize.quantize_blocks(*arguments)


def _gelu_quantize(machine: Machine, case: Case, *arguments: Any) -> tuple[Tensor, Tensor]:
    from .gpu import quantize

    return quantize.gelu_quantize(*arguments)


def _dequantize(machine: Machine, case: Case, *arguments: Any) -> Tensor:
    from .gpu import dequantize

    return dequantize.dequantize(*arguments)


def _scaled_linear(machine: Machine, case: Case, *arguments: Any) -> Tensor:
    from .gpu import gemm

    def run(tile: Tile) -> Tensor:
        return gemm.scaled_linear(*arguments, tile=tile)

    return run(tile_for(machine, case, run))


def _scaled_linear_quantized(
    machine: Machine, case: Case, *arguments: Any
) -> tuple[Tensor, Tensor]:
    from .gpu import gemm

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        return gemm.scaled_linear_quantized(*arguments, tile=tile)

    return run(tile_for(machine, case, run))


def _dequantize_4bit(machine: Machine, case: Case, *arguments: Any) -> Tensor:
    from .gpu import four_bit as gpu

    return gpu.dequantize_4bit(*arguments)


def _linear_4bit(machine: Machine, case: Case, *arguments: Any) -> Tensor:
    from .gpu import four_bit as gpu

    def run(tile: Tile) -> Tensor:
        return gpu.linear_4bit(*arguments, tile=tile)

    return run(tile_for(machine, case, run))


def _coded_linear(
    machine: Machine,
    case: Case,
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    weight_dtype: torch.dtype,
) -> Tensor:
    """:func:`products.coded_linear`, each of its two operations as fast as it goes here."""
    quantizing = Case(
        "quantize_rows", case.dtype, case.t, 0, case.k, case.group, float_dtype=case.float_dtype
    )
    codes, scale = call(machine, quantizing, x, w.dtype, case.group)
    product = Case(
        "scaled_linear", case.dtype, case.t, case.n, case.k, case.group, case.rows,
        float_dtype=case.float_dtype,
    )  # fmt: skip
    return call(machine, product, codes, scale, w, w_scale, bias, x.dtype)


def _decoded_linear(
    machine: Machine,
    case: Case,
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    weight_dtype: torch.dtype,
) -> Tensor:
    """:func:`products.decoded_linear` with the decoding kernel, a tile of rows at a time."""
    from .gpu import dequantize

    out = torch.empty(x.shape[0], w.shape[0], dtype=x.dtype, device=x.device)
    for part, scale in products.weight_tiles(w, w_scale):
        tile = dequantize.dequantize(w[part], scale, weight_dtype).to(x.dtype)
        mine = None if bias is None else bias[part].to(x.dtype)
        out[:, part] = torch.nn.functional.linear(x, tile, mine)
    return out


def _linear(machine: Machine, case: Case, *arguments: Any) -> Tensor:
    """The reference, which quantizes inputs where the machine multiplies codes."""
    coded = machine.multiplies(case.dtype, case.groups)
    return (products.coded_linear if coded else products.decoded_linear)(*arguments)


def _plain(function: Any) -> Any:
    """A reference or a vendor's function, which need neither machine nor case."""
    return lambda machine, case, *arguments: function(*arguments)


def _always(machine: Machine, case: Case) -> bool:
    return True


_TABLE: dict[str, list[tuple[str, Any, Any]]] = {
    "quantize_rows": [
        ("triton", _quantize_rows, _coded),
        (EAGER, _plain(activations.quantize_rows), _always),
    ],
    "quantize_blocks": [
        ("triton", _quantize_blocks, _block_fits),
        (EAGER, _plain(activations.quantize_blocks), _always),
    ],
    "gelu_quantize": [
        ("triton", _gelu_quantize, _coded),
        (EAGER, _plain(activations.gelu_quantize), _always),
    ],
    "dequantize": [
        ("triton", _dequantize, _decodable),
        (EAGER, _plain(blocks.dequantize), _always),
    ],
    "linear": [
        ("comfy-kitchen", _plain(vendors.kitchen_int8), _kitchen_int8),
        ("codes", _coded_linear, _codes),
        ("triton", _decoded_linear, _decoded),
        (EAGER, _linear, _always),
    ],
    "scaled_linear": [
        ("torch blocks", _plain(vendors.torch_float8_blocks), _torch_float8_blocks),
        ("torch rows", _plain(vendors.torch_float8), _torch_float8_rows),
        ("triton", _scaled_linear, _triton_product),
        ("torch groups", _plain(vendors.torch_float8), _torch_float8),
        ("torch rounded", _plain(vendors.torch_float8_rounded), _torch_float8_rounded),
        ("torch int8", _plain(vendors.torch_int8), _torch_int8),
        (EAGER, _plain(products.scaled_linear), _always),
    ],
    "scaled_linear_quantized": [
        ("triton", _scaled_linear_quantized, _triton_requantized),
        (EAGER, _plain(products.scaled_linear_quantized), _always),
    ],
    "dequantize_4bit": [
        ("triton", _dequantize_4bit, _elementwise),
        (EAGER, _plain(four_bit.dequantize_4bit), _always),
    ],
    "linear_4bit": [
        ("triton", _linear_4bit, _few_rows),
        (EAGER, _plain(four_bit.linear_4bit), _always),
    ],
}

for _op, _rows in _TABLE.items():
    for _name, _run, _accepts in _rows:
        register(Implementation(_op, _name, _run, _accepts))
