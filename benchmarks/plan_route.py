"""The layer picker's plan of 2 000 layers: the route's time, warm, and with every pick new.

    COMFYUI_DIR=~/ComfyUI .venv-comfyui/bin/python benchmarks/plan_route.py

Writes a file of 2 002 matrices with a Flux's names (293 MB, of zeros: no weight is read), lists it
as ComfyUI would, and answers requests as the server's handler does, JSON in and out, without the
network. CPU time is printed beside the clock's: on a busy machine only the former says anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BAR = 0.150
DOUBLE = {
    f"{stream}_{kind}": shape
    for stream in ("img", "txt")
    for kind, shape in {
        "attn.qkv": (384, 128),
        "attn.proj": (128, 128),
        "mlp.0": (512, 128),
        "mlp.2": (128, 512),
        "mod.lin": (768, 128),
    }.items()
}
SINGLE = {"linear1": (896, 128), "linear2": (128, 640), "modulation.lin": (384, 128)}


def write_model(path: Path, double: int = 80, single: int = 400) -> int:
    """Write a sparse BF16 file of zeros, weights and biases; how many matrices it has."""
    names: dict[str, tuple[int, ...]] = {"img_in": (128, 64), "final_layer.linear": (64, 128)}
    names |= {f"double_blocks.{b}.{k}": s for b in range(double) for k, s in DOUBLE.items()}
    names |= {f"single_blocks.{b}.{k}": s for b in range(single) for k, s in SINGLE.items()}
    header: dict[str, Any] = {}
    end = 0
    for layer, shape in names.items():
        for name, dims in ((f"{layer}.weight", shape), (f"{layer}.bias", shape[:1])):
            size = 2 * dims[0] * (dims[1] if len(dims) > 1 else 1)
            entry = {"dtype": "BF16", "shape": dims, "data_offsets": [end, end + size]}
            header[name], end = entry, end + size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return len(names)


def measure(what: str, call: Callable[[int], int], count: int) -> float:
    """Print the median of ``count`` calls; CPU seconds of it."""
    clock, cpu, size = [], [], 0
    for number in range(count):
        began, worked = time.perf_counter(), time.process_time()
        size = call(number)
        clock.append(time.perf_counter() - began)
        cpu.append(time.process_time() - worked)
    found = statistics.median(cpu)
    print(
        f"{what:42}{1e3 * found:7.0f} ms CPU{1e3 * statistics.median(clock):7.0f} ms clock "
        f"(worst {1e3 * max(clock):.0f}){size / 1e3:9.0f} KB"
    )
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status says whether the bar was met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="roundsmith-benchmark-") as folder:
        plan, layers = _routes(Path(folder))
        source = "diffusion_models/big.safetensors"
        print(f"{write_model(Path(folder) / 'big.safetensors')} matrices")
        rows = json.loads(json.dumps(layers({}, {"source": source})))["layers"]
        names = [row[0] for row in rows]
        body: dict[str, Any] = {
            "source": source,
            "widgets": {"format": "int8_tensorwise", "format.scaling": "row"},
            "rules": [{"match": "linear1$", "format": "mxfp8"}],
        }

        def ask(changes: dict[str, Any]) -> int:
            return len(plan({}, json.loads(json.dumps({**body, **changes}))))

        def pick(number: int) -> int:
            one = [name for name in names if name.startswith(f"single_blocks.{number}.")]
            many = [name for name in names if name.endswith("qkv")][number:]
            return ask({"picks": [{"choice": "nvfp4", "layers": many},
                                  {"choice": "keep", "layers": one}]})  # fmt: skip

        ask({})
        measure("layers", lambda _: len(json.dumps(layers({}, {"source": source}))), 5)
        warm = measure("plan, asked again", lambda _: ask({}), arguments.repeat)
        new = measure("plan, other layers picked each time", pick, arguments.repeat)
    passed = max(warm, new) <= BAR
    print(f"{'PASS' if passed else 'FAIL'}: at most {1e3 * BAR:.0f} ms of CPU time")
    return 0 if passed else 1


def _routes(folder: Path) -> tuple[Callable[..., str], Callable[..., Any]]:
    """The routes' functions, in ComfyUI with one folder of models."""
    from roundsmith import dev

    sys.path.insert(0, str(dev.find_comfyui()))
    import comfy.options

    comfy.options.enable_args_parsing()
    arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
    import comfy.cli_args
    import folder_paths

    sys.argv = arguments
    folder_paths.folder_names_and_paths["diffusion_models"] = ([str(folder)], {".safetensors"})
    from roundsmith.bridge.planning import layers
    from roundsmith.nodes._planning import plan

    return plan, layers


if __name__ == "__main__":
    sys.exit(main())
