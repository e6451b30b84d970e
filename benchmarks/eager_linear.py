"""How long a quantized layer's product takes on a CPU, against decoding the weight and multiplying.

    python benchmarks/eager_linear.py [--tokens 256] [--dtype float32] [--only int8_blockwise ...]

For each format a layer of 4096 × 4096: ``linear`` as the layout runs it, and what it replaces,
``dequantize`` and a matrix product in the dtype of the inputs. Both are run in turns, and the best
of each counts. The bar is a ratio of 2. Before timing, the two results are compared.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from roundsmith.converters.rounding import nearest
from roundsmith.layouts import Format
from roundsmith.layouts.registry import formats

BAR = 2.0
MIN_SNR = 15.0
"""dB between the two products: layouts that round inputs to four bits are the lowest."""


def layer(fmt: Format, options: dict[str, Any], w: Tensor, dtype: torch.dtype) -> Tensor:
    """``w`` in ``fmt``, as a tensor that runs."""
    shape = (w.shape[0], w.shape[1])
    spec = fmt.fit(fmt.bind(features=shape[1], **options), shape).spec
    assert spec is not None
    grid = fmt.grid_for(spec)
    codes, scales = nearest(fmt.transform(w.clone(), spec), grid, fmt.geometry(spec))
    parts = {
        "weight": fmt.pack_codes(codes, spec),
        **fmt.pack_scales(scales, spec, fmt.padded_shape(shape)),
        **fmt.pack_grid(grid),
    }
    return fmt.read(parts, fmt.conf(spec, shape), shape, dtype)


def cases() -> list[tuple[str, dict[str, Any]]]:
    """Every format, with the options that make it run otherwise."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name, fmt in formats().items():
        found += [(name, {"variant": v} if v else {}) for v in fmt.variants or (None,)]
        if fmt.rotates and not fmt.always_rotates:
            found.append((name, {"convrot": 256}))
    return found


def best_of(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """Best seconds of each of ``runs``, taken in turns for about ``seconds``, three at least."""
    best = [math.inf] * len(runs)
    stop, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < stop:
        for at, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[at] = min(best[at], time.perf_counter() - start)
        rounds += 1
    return best


def snr(reference: Tensor, other: Tensor) -> float:
    """10·log10(‖a‖² / ‖a − b‖²), dB."""
    noise = (reference.double() - other.double()).square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise))


def main() -> int:
    """Print the table; the exit status says whether every format is under the bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each format")
    parser.add_argument("--only", nargs="*", default=[])
    chosen = parser.parse_args()
    dtype = getattr(torch, chosen.dtype)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(chosen.size, chosen.size, generator=generator)
    x = torch.randn(chosen.tokens, chosen.size, generator=generator).to(dtype)
    print(
        f"{chosen.size} × {chosen.size}, {chosen.tokens} tokens, {chosen.dtype}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}\n"
    )
    print(f"{'format':34} {'decode, multiply':>17} {'linear':>9} {'ratio':>6}  SNR dB")
    missed = []
    for name, options in cases():
        if chosen.only and name not in chosen.only:
            continue
        weight = layer(formats()[name], options, w, dtype)
        title = " ".join([name, *(f"{key} {value}" for key, value in options.items())])

        def replaced(weight: Any = weight) -> Tensor:
            return torch.nn.functional.linear(x, weight.dequantize().to(dtype))

        def ours(weight: Any = weight) -> Tensor:
            return torch.nn.functional.linear(x, weight)

        with torch.inference_mode():
            agreement = snr(replaced(), ours())
            before, after = best_of([replaced, ours], chosen.seconds)
        good = after <= BAR * before and agreement >= MIN_SNR
        missed += [] if good else [title]
        print(
            f"{title:34} {before * 1e3:14.1f} ms {after * 1e3:6.1f} ms {after / before:6.2f}  "
            f"{agreement:6.1f}{'' if good else '   MISSED'}",
            flush=True,
        )
    print(
        f"\nbar: at most {BAR:g} times; " + (f"missed by {', '.join(missed)}" if missed else "met")
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
