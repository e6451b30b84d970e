"""Quantized products on a GPU: against bfloat16, comfy-kitchen, the peer, and the roofline.

    python benchmarks/kernels.py [--peer ~/peer/lib/python3.12/site-packages] [--autotune]
    python benchmarks/kernels.py --interpret     # tiny shapes in Triton's interpreter, no times

Layers of Flux and Wan (3072 × 3072 to 13824 inputs) at 256, 1024 and 4096 tokens, activations
quantized inside the time; four-bit layers at 1 to 16 tokens. Everything is compared with a product
in float32 of the decoded weights before it is timed, and the median of runs with a cold L2 cache
counts. A roofline is what the device's data sheet allows: ``--tops``, ``--tflops`` (dense INT8 or
FP8, and bfloat16) and ``--bandwidth`` (GB/s), known for some devices. Nothing is claimed without a
GPU. The exit status says whether the bars are met.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = ((3072, 3072), (3072, 12288), (12288, 3072), (5120, 13824))
"""Outputs and inputs. The bars hold for all but the first."""
TOKENS, FEW = (256, 1024, 4096), (1, 4, 16)
PEAKS = {"H100": (1979, 989, 3350), "H200": (1979, 989, 4800), "RTX 4090": (660, 165, 1008)}
"""Dense INT8 (FP8) TOPS, bfloat16 TFLOPS, GB/s, from NVIDIA's data sheets."""
MIN_SNR = {"int8": 30.0, "fp8": 25.0, "4 bit": 35.0}
"""dB over the exact product: what rounding the activations leaves."""

Run = Callable[[], Tensor]


@dataclass
class Contender:
    """One way to compute a layer; ``kind`` chooses the bound on its error."""

    name: str
    kind: str
    run: Run
    exact: Tensor


def contenders(x: Tensor, w: Tensor, peer: bool) -> list[Contender]:
    """Ours, comfy-kitchen's and the peer's INT8 and FP8 products of ``x [T, K]``, ``w [N, K]``."""
    from roundsmith import kernels
    from roundsmith.kernels.vendors import kitchen_int8

    n, k = w.shape
    found: list[Contender] = []
    for name, dtype, rows, cols in (
        ("int8 row", torch.int8, 1, k),
        ("int8 block 128", torch.int8, 128, 128),
        ("fp8 row", torch.float8_e4m3fn, 1, k),
        ("fp8 block 128", torch.float8_e4m3fn, 128, 128),
    ):
        if n % rows or k % cols:
            continue
        codes, scale = kernels.quantize_blocks(w, dtype, rows, cols)
        exact = x.float() @ kernels.dequantize(codes, scale).t()
        kind = name.split()[0]

        def ours(codes: Tensor = codes, scale: Tensor = scale) -> Tensor:
            return kernels.linear(x, codes, scale, None, torch.bfloat16)

        found.append(Contender(name, kind, ours, exact))
        if name == "int8 row":

            def kitchen(codes: Tensor = codes, scale: Tensor = scale) -> Tensor:
                return kitchen_int8(x, codes, scale, None, torch.bfloat16)

            found.append(Contender("int8 row, comfy-kitchen", kind, kitchen, exact))
        if peer and name.startswith("int8"):
            found.append(Contender(f"{name}, peer", kind, _peer(x, codes, scale), exact))
    return found


def _peer(x: Tensor, codes: Tensor, scale: Tensor) -> Run:
    """The peer's Triton kernels from its installed package, activations quantized with its own."""
    from convert_to_quant.comfy import int8_kernels

    if scale.shape[1] == 1:

        def rows() -> Tensor:
            return int8_kernels.int8_gemm_per_row(*int8_kernels.act_quant_rowwise(x), codes, scale)

        return rows

    def blocks() -> Tensor:
        return int8_kernels.int8_gemm(*int8_kernels.act_quant(x, 128), codes, scale, 128)

    return blocks


def four_bit(x: Tensor, w: Tensor) -> Contender:
    """Our four-bit linear layer, NF4-like, of ``x [T, K]``, ``w [N, K]``."""
    from roundsmith import kernels

    n, k = w.shape
    table = torch.linspace(-1, 1, 16, device=w.device)
    packed = torch.randint(0, 256, (n * k // 2,), dtype=torch.uint8, device=w.device)
    absmax = torch.rand(n * k // 64, device=w.device) + 0.5
    decoded = kernels.dequantize_4bit(packed, absmax, table, 64, (n, k), torch.float32)

    def run() -> Tensor:
        return kernels.linear_4bit(x, packed, absmax, table, 64, (n, k))

    return Contender("4 bit", "4 bit", run, x.float() @ decoded.t())


def median_ms(run: Run, repeats: int = 30) -> float:
    """Median milliseconds on the GPU, the L2 cache flushed before each run."""
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[repeats // 2]


def agrees(contender: Contender) -> float:
    """SNR of a contender's result, dB; exits where it is too low."""
    found = contender.run().float()
    noise = (found - contender.exact).double().square().sum().item()
    power = contender.exact.double().square().sum().item()
    snr = 10 * math.log10(power / noise) if noise else math.inf
    if not snr >= MIN_SNR[contender.kind]:
        sys.exit(f"{contender.name} {tuple(contender.exact.shape)}: wrong, {snr:.1f} dB")
    return snr


def roofline_ms(kind: str, t: int, n: int, k: int, peaks: tuple[float, ...] | None) -> float:
    """What the device could need at least: its arithmetic or its memory, whichever is longer."""
    if peaks is None:
        return math.nan
    eight, sixteen, bandwidth = peaks
    rate = eight if kind in ("int8", "fp8") else sixteen
    weight = {"int8": 1.0, "fp8": 1.0, "4 bit": 0.5 + 4 / 64, "bf16": 2.0}[kind]
    arithmetic = 2 * t * n * k / (rate * 1e9)
    memory = (n * k * weight + 2 * t * (n + k)) / (bandwidth * 1e6)
    return max(arithmetic, memory)


def bars(times: dict[str, float], t: int, shape: tuple[int, int]) -> list[str]:
    """The bars that ``times`` (ms by name) miss."""
    base, missed = times["bf16"], []

    def need(name: str, over: str, ratio: float) -> None:
        if name in times and over in times and times[over] < ratio * times[name]:
            got = times[over] / times[name]
            missed.append(f"{name} at {t} × {shape}: {got:.2f}× {over}, needs {ratio:g}×")

    if t in FEW:
        need("4 bit", "bf16", 2.0)
    elif t == 4096 and shape != SHAPES[0]:
        assert base > 0
        need("int8 row", "bf16", 1.5)
        need("int8 row", "int8 row, comfy-kitchen", 1.0)
        need("int8 block 128", "bf16", 1.3)
        need("int8 block 128", "int8 block 128, peer", 1.2)
        need("fp8 row", "bf16", 1.6)
    return missed


def measure(peer: bool, peaks: tuple[float, ...] | None) -> list[str]:
    """Print the tables; returns the bars that are missed."""
    missed = []
    print(
        f"{'layer':16} {'tokens':>6}  {'kernel':26} {'ms':>8} {'× bf16':>7} {'roofline':>9}  SNR dB"
    )
    for n, k in SHAPES:
        w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) / k**0.5
        for t in (*FEW, *TOKENS):
            x = torch.randn(t, k, device="cuda", dtype=torch.bfloat16)
            some = [four_bit(x, w)] if t in FEW else contenders(x, w, peer)

            def half(x: Tensor = x, w: Tensor = w) -> Tensor:
                return torch.nn.functional.linear(x, w)

            times = {"bf16": median_ms(half)}
            notes = {"bf16": ("bf16", math.inf)}
            for contender in some:
                notes[contender.name] = (contender.kind, agrees(contender))
                times[contender.name] = median_ms(contender.run)
            for name, taken in times.items():
                kind, snr = notes[name]
                share = roofline_ms(kind, t, n, k, peaks) / taken
                print(
                    f"{n:6} × {k:<7} {t:6}  {name:26} {taken:8.3f} {times['bf16'] / taken:7.2f} "
                    f"{share:9.0%}  {snr:.1f}"
                )
            missed += bars(times, t, (n, k))
    return missed


def interpret() -> int:
    """The same kernels on the CPU, over tiny shapes: that they run and are right, not how fast."""
    from roundsmith.kernels import activations, blocks
    from roundsmith.kernels import four_bit as reference
    from roundsmith.kernels.gpu import four_bit as four
    from roundsmith.kernels.gpu import gemm, quantize
    from roundsmith.kernels.tiles import Tile

    for t, n, k in ((5, 48, 128), (33, 64, 256)):
        x, w = torch.randn(t, k), torch.randn(n, k) / k**0.5
        for name, dtype, rows, cols in (
            ("int8 row", torch.int8, 1, k),
            ("int8 block", torch.int8, 16, 64),
            ("fp8 row", torch.float8_e4m3fn, 1, k),
            ("fp8 block", torch.float8_e4m3fn, 16, 64),
        ):
            codes, scale = activations.quantize_blocks(w, dtype, rows, cols)
            exact = x @ blocks.dequantize(codes, scale).t()
            group = k // scale.shape[1]

            def run(
                x: Tensor = x, codes: Tensor = codes, scale: Tensor = scale, group: int = group
            ) -> Tensor:
                inputs = quantize.quantize_rows(x, codes.dtype, group)
                return gemm.scaled_linear(
                    *inputs, codes, scale, None, torch.float32, tile=Tile(16, 16, 32)
                )

            found = Contender(name, name.split()[0], run, exact)
            print(f"{name:12} {t} × {n} × {k}: {agrees(found):.1f} dB")
        few = x[:16]
        found = four_bit(few, w)
        packed = torch.randint(0, 256, (n * k // 2,), dtype=torch.uint8)
        given = packed, torch.rand(n * k // 64) + 0.5, torch.linspace(-1, 1, 16), 64, (n, k)
        exact = few @ reference.dequantize_4bit(*given, torch.float32).t()

        def small(given: tuple = given, few: Tensor = few) -> Tensor:
            return four.linear_4bit(few, *given, None, tile=Tile(16, 16, 32), interpreted=True)

        print(f"{'4 bit':12} {len(few)} × {n} × {k}: {agrees(found):.1f} dB eager")
        print(f"{'4 bit':12} {len(few)} × {n} × {k}: ", end="")
        print(f"{agrees(Contender('4 bit', '4 bit', small, exact)):.1f} dB")
    print("\nright; nothing was timed: Triton's interpreter says nothing about speed")
    return 0


def main() -> int:
    """Print the tables; the exit status says whether the bars are met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--peer", help="site-packages in which the peer is installed")
    parser.add_argument("--autotune", action="store_true", help="measure configurations first")
    parser.add_argument("--tops", type=float, help="dense INT8 or FP8 TOPS")
    parser.add_argument("--tflops", type=float, help="dense bfloat16 TFLOPS")
    parser.add_argument("--bandwidth", type=float, help="GB/s")
    chosen = parser.parse_args()
    if chosen.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
        torch.manual_seed(0)
        return interpret()
    if not torch.cuda.is_available():
        print("no GPU: nothing is measured; --interpret checks the kernels on the CPU")
        return 2
    if chosen.autotune:
        os.environ["ROUNDSMITH_KERNELS"] = "autotune"
    if chosen.peer:
        sys.path.append(chosen.peer)
    from roundsmith.kernels.registry import failures

    name = torch.cuda.get_device_name()
    peaks: tuple[float, ...] | None = next((p for key, p in PEAKS.items() if key in name), None)
    if chosen.tops and chosen.tflops and chosen.bandwidth:
        peaks = (chosen.tops, chosen.tflops, chosen.bandwidth)
    print(f"{name}, torch {torch.__version__}, {'autotuned' if chosen.autotune else 'fixed'}\n")
    torch.manual_seed(0)
    with torch.inference_mode():
        missed = measure(bool(chosen.peer), peaks)
    for kernel, count in failures.items():
        print(f"{kernel} failed {count} times and was replaced")
    print("\nbars: " + ("met" if not missed else "missed:\n  " + "\n  ".join(missed)))
    return 1 if missed or failures else 0


if __name__ == "__main__":
    sys.exit(main())
