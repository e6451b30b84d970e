"""Compile every kernel for GPUs that are not here, and print what came of it as JSON.

Triton needs no GPU to compile for one. Run with ``TRITON_INTERPRET=0``; prints one line a kernel:
``[name, capability, error or null, bytes of shared memory, its tensor-core instructions]``.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from roundsmith.kernels.gpu import dequantize, four_bit, gemm, quantize
from roundsmith.kernels.machine import Machine
from roundsmith.kernels.registry import Case
from roundsmith.kernels.tiles import fixed_tile

TENSOR_CORES = re.compile(r"(wgmma\.mma_async|mma\.sync|tcgen05\.mma)\S*?\.(s8|e4m3|bf16|f16|kind)")


def compile_for(capability: int, kernel: Any, given: dict[str, Any], **options: int) -> list[Any]:
    """Compile ``kernel`` with pointer types and constants given by name, the rest 32-bit ints."""
    signature, constants, hints = {}, {}, {}
    for at, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", given[name]
        else:
            signature[name] = given.get(name, "i32")
            hints[(at,)] = [["tt.divisibility", 16]]  # as launches with common shapes have
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    target = GPUTarget("cuda", capability, 32)
    name = kernel.__name__ + str(given.get("label", ""))
    try:
        built = triton.compile(source, target=target, options=options)
    except Exception as error:
        return [name, capability, str(error).strip().split("\n")[-1], 0, []]
    found = sorted({"".join(match) for match in TENSOR_CORES.findall(built.asm["ptx"])})
    return [name, capability, None, built.metadata.shared, found]


def product(capability: int, dtype: str, grouped: bool, quantized: bool, rows: int) -> list[Any]:
    import torch

    machine = Machine("cuda", "", divmod(capability, 10), triton=True)
    codes = torch.int8 if dtype == "i8" else torch.float8_e4m3fn
    op = "scaled_linear_quantized" if quantized else "scaled_linear"
    tile = fixed_tile(
        machine,
        Case(op, codes, rows, 12288, 3072, 128 if grouped else 3072, out_group=128 * quantized),
    )
    kind = 0 if dtype == "i8" else 1
    out = ("*i8" if dtype == "i8" else "*u8") if quantized else "*bf16"
    given = {
        "x": f"*{dtype}", "w": f"*{dtype}", "out": out, "out_scale": "*fp32", "x_scale": "*fp32",
        "w_scale": "*fp32", "bias": "*bf16", "integer": dtype == "i8", "one_group": not grouped,
        "flat_scale": grouped, "even_k": True, "biased": True, "activation": int(quantized),
        "requantize": kind if quantized else -1, "block_t": tile.t, "block_n": tile.n,
        "block_k": tile.k, "band": tile.band,
        "label": f" {dtype} {'grouped' if grouped else 'rows'}{' quantized' * quantized} {rows}",
    }  # fmt: skip
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return compile_for(capability, gemm._gemm_kernel, given, **options)


def few_rows(capability: int, aligned: bool) -> list[Any]:
    import triton.language as tl

    given = {
        "x": "*bf16", "packed": "*u8", "absmax": "*fp32", "table": "*fp32", "bias": "*bf16",
        "out": "*fp32", "group": 64, "aligned": aligned, "biased": True, "split": True,
        "rounded": tl.bfloat16, "operand": tl.bfloat16, "block_t": 16, "block_m": 16, "block_b": 32,
    }  # fmt: skip
    return compile_for(capability, four_bit._linear_kernel, given, num_warps=4, num_stages=4)


def simple(capability: int) -> list[list[Any]]:
    """The kernels without a product."""
    rows = {
        "x": "*bf16", "x_scale": "*fp32", "codes": "*u8", "scale": "*fp32", "source": -1,
        "kind": 1, "activation": 0, "whole": True, "block_s": 1, "block_l": 4096,
    }  # fmt: skip
    gelu = {**rows, "x": "*i8", "codes": "*i8", "source": 0, "kind": 0, "activation": 2}
    long = {**rows, "codes": "*i8", "kind": 0, "activation": 1, "whole": False, "block_l": 16384}
    blocks = {
        "w": "*fp32", "codes": "*i8", "scale": "*fp32", "kind": 0, "block_r": 128, "block_c": 128,
    }  # fmt: skip
    decoding = {
        "codes": "*u8", "scale": "*fp32", "out": "*bf16", "kind": 1, "block_m": 4, "block_n": 1024,
    }  # fmt: skip
    four = {"packed": "*u8", "absmax": "*fp32", "table": "*fp32", "out": "*bf16", "block": 1024}
    adding = {
        "parts": "*fp32", "bias": "*bf16", "out": "*bf16", "biased": True, "split": 4, "block": 256,
    }  # fmt: skip
    return [
        compile_for(capability, quantize._segments_kernel, {**rows, "label": " rows"}),
        compile_for(capability, quantize._segments_kernel, {**gelu, "label": " gelu of codes"}),
        compile_for(capability, quantize._segments_kernel, {**long, "label": " long"}, num_warps=8),
        compile_for(capability, quantize._blocks_kernel, blocks, num_warps=8),
        compile_for(capability, dequantize._dequantize_kernel, decoding),
        compile_for(capability, four_bit._dequantize_kernel, four),
        compile_for(capability, four_bit._add_kernel, adding),
    ]


def main() -> None:
    found = [*simple(75), *simple(90)]
    for capability in (80, 86, 89, 90, 100, 120):
        found.append(product(capability, "i8", grouped=False, quantized=False, rows=4096))
        if capability >= 89:
            found.append(product(capability, "fp8e4nv", grouped=True, quantized=False, rows=4096))
    found.append(product(80, "i8", grouped=True, quantized=False, rows=64))
    found.append(product(86, "i8", grouped=True, quantized=True, rows=4096))
    found.append(product(89, "fp8e4nv", grouped=False, quantized=True, rows=4096))
    found.append(product(90, "fp8e4nv", grouped=False, quantized=False, rows=16))
    found += [few_rows(80, True), few_rows(90, True), few_rows(90, False), few_rows(120, True)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
