"""File to file: time and peak memory of a conversion, against the peer, a copy and comfy-kitchen.

    python benchmarks/convert.py --dir /fast/disk --peer-python ~/peer/bin/python

Writes a bf16 checkpoint of 1.9 GB (40 matrices of 57 and 38 MB with a Flux's names, and biases),
converts it to FP8 (one scale a tensor) and INT8 (one scale a row), nearest rounding, and removes
everything. Each alternative is a process of its own on the same cores; its time is from start to
exit, its peak the kernel's count of resident pages, mapped files included. Rounds are interleaved
and the median time counts. The source is in the page cache unless ``--cold`` (which needs root).

The peer is convert-to-quant 1.3.4 with ``--simple``, in an environment of its own (see
tests/peer/make_fixtures.py). It does not wait for the disk; ``cp`` does (``sync``), and so do we.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Nothing big may be imported here: a child's peak counts from the size of what forked it.
MB = 1e6
SOURCE = """
import sys, torch
from safetensors.torch import save_file
shapes = {"double_blocks.%d.img_attn.qkv": (9216, 3072), "single_blocks.%d.linear2": (3072, 6144)}
tensors = {}
for block in range(int(sys.argv[2])):
    for name, (m, n) in shapes.items():
        rng = torch.Generator().manual_seed(block)
        spread = 0.02 * torch.exp(0.4 * torch.randn(m, 1, generator=rng))
        weight = torch.randn(m, n, generator=rng).mul_(spread)
        tensors[name % block + ".weight"] = weight.bfloat16()
        tensors[name % block + ".bias"] = torch.randn(m, generator=rng).bfloat16()
save_file(tensors, sys.argv[1])
"""
BASELINE = "import torch, comfy_kitchen"
API = """
import sys, roundsmith
recipe = roundsmith.Recipe(format=sys.argv[3], scaling=sys.argv[4] or None, preset=None)
roundsmith.quantize_file(sys.argv[1], sys.argv[2], recipe, overwrite=True)
"""
KITCHEN = """
import sys
from comfy_kitchen.tensor import QuantizedTensor
from safetensors.torch import load_file, save_file
layout = {"float8_e4m3fn": "TensorCoreFP8Layout", "int8_tensorwise": "TensorWiseINT8Layout"}
options = {"per_channel": True} if sys.argv[4] == "row" else {}
out = {}
for name, tensor in load_file(sys.argv[1]).items():
    if tensor.ndim != 2:
        out[name] = tensor
        continue
    quantized = QuantizedTensor.from_float(tensor, layout[sys.argv[3]], **options)
    out[name], out[name + "_scale"] = quantized._qdata, quantized._params.scale
save_file(out, sys.argv[2])
"""


@dataclass(frozen=True)
class Target:
    """What a file is converted to, for us and for the peer."""

    title: str
    format: str
    scaling: str
    peer_options: tuple[str, ...]
    scale_bytes: int  # for all matrices of one block


TARGETS = (
    Target("fp8, one scale a tensor", "float8_e4m3fn", "", (), 2 * 4),
    Target(
        "int8, one scale a row",
        "int8_tensorwise",
        "row",
        ("--int8", "--scaling_mode", "row"),
        (9216 + 3072) * 4,
    ),
)
CODES = 9216 * 3072 + 3072 * 6144  # bytes of codes of one block
BIASES = 2 * (9216 + 3072)


@dataclass
class Measured:
    """Runs of one alternative: seconds and peak bytes of each, size of the output."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    size: int = 0

    @property
    def time(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def peak(self) -> float:
        """Largest peak in bytes."""
        return max(self.peaks)


def run(command: Sequence[str | Path], cores: int) -> tuple[float, float]:
    """Run a command with ``cores`` threads; return seconds and peak resident bytes.

    Raises:
        SystemExit: the command failed; its output is shown.
    """
    words = [str(word) for word in command]
    threads = {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)}
    with tempfile.TemporaryFile("w+b") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **threads}
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(words)[:300]}\n{log.read().decode()[-3000:]}")
    return seconds, usage.ru_maxrss * 1024.0


def prepare(source: Path, output: Path, cold: bool) -> None:
    """Remove the output, let the disk settle, and put the source into the page cache or out."""
    output.unlink(missing_ok=True)
    os.sync()
    if cold:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return
    with source.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def commands(
    target: Target, source: Path, output: Path, peer: Path | None
) -> dict[str, list[str | Path]]:
    """Every alternative for one target, ours first."""
    python, paths = sys.executable, [source, output]
    ours = [python, "-m", "roundsmith", "quantize", *paths, "--format", target.format]
    ours += [*(["--scaling", target.scaling] if target.scaling else []), "--preset", "none"]
    options = [*paths, target.format, target.scaling]
    found: dict[str, list[str | Path]] = {
        "roundsmith": ours,
        "roundsmith, Python API": [python, "-c", API, *options],
        "cp + sync": ["sh", "-c", 'cp "$0" "$1" && sync "$1"', *paths],
        "comfy-kitchen, naive": [python, "-c", KITCHEN, *options],
    }
    if peer:
        call = [peer, "-m", "convert_to_quant.convert_to_quant", "-i", source, "-o", output]
        call += ["--comfy_quant", "--save-quant-metadata", "--manual_seed", "0", "--simple"]
        found["convert-to-quant --simple"] = [*call, *target.peer_options]
    return found


def verdict(passed: bool, what: str, value: float, bar: str) -> bool:
    """Print one bar."""
    print(f"  {'PASS' if passed else 'FAIL'}  {what}: {value:.2f} (bar {bar})")
    return passed


def compare(target: Target, folder: Path, arguments: argparse.Namespace, baseline: float) -> bool:
    """Measure every alternative for one target; print the table and the bars."""
    source, output = folder / "source.safetensors", folder / "output.safetensors"
    results = {}
    for _ in range(arguments.repeat):
        for name, command in commands(target, source, output, arguments.peer_python).items():
            measured = results.setdefault(name, Measured(name))
            prepare(source, output, arguments.cold)
            seconds, peak = run(command, arguments.cores)
            measured.seconds.append(seconds)
            measured.peaks.append(peak)
            measured.size = output.stat().st_size
    output.unlink()
    ours = results["roundsmith"]
    cache = "cold" if arguments.cold else "warm"
    print(f"\n{target.title}: {source.stat().st_size / MB:.0f} MB, {cache} page cache")
    print(f"{'':28}{'seconds':>9}{'× ours':>8}{'peak MB':>9}{'output MB':>11}")
    for m in results.values():
        row = f"{m.time:9.2f}{m.time / ours.time:8.2f}{m.peak / MB:9.0f}{m.size / MB:11.1f}"
        print(f"{m.name:28}{row}   ({', '.join(f'{s:.2f}' for s in m.seconds)})")
    needed = arguments.blocks * (CODES + BIASES + target.scale_bytes)
    copy = ours.time / results["cp + sync"].time
    extra = (ours.peak - baseline) / MB
    bars = [
        verdict(copy <= 2.5, "time, copies", copy, "≤ 2.5"),
        verdict(extra <= 150, "peak above imports, MB", extra, "≤ 150"),
        verdict(ours.size <= 1.01 * needed, "size, codes + scales", ours.size / needed, "≤ 1.01"),
    ]
    peer = results.get("convert-to-quant --simple")
    if peer:
        faster = peer.time / ours.time
        bars.append(verdict(faster >= 8, "times faster than the peer", faster, "≥ 8"))
    return all(bars)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, help="where the files go (5 GB); default: temporary")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has convert-to-quant")
    parser.add_argument("--blocks", type=int, default=20, help="pairs of matrices (94 MB each)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each run")
    parser.add_argument("--target", choices=[t.format for t in TARGETS], help="only this format")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status says whether every bar was met."""
    arguments = parse(words)
    folder = Path(tempfile.mkdtemp(prefix="roundsmith-benchmark-", dir=arguments.dir))
    try:
        make = [sys.executable, "-c", SOURCE, folder / "source.safetensors", arguments.blocks]
        run([str(word) for word in make], os.cpu_count() or 1)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
        imports = [run([sys.executable, "-c", BASELINE], arguments.cores) for _ in range(3)]
        baseline = max(peak for _, peak in imports)
        print(f"{arguments.cores} cores; importing torch and comfy-kitchen alone: ", end="")
        print(f"{min(seconds for seconds, _ in imports):.2f} s, {baseline / MB:.0f} MB")
        chosen = [t for t in TARGETS if arguments.target in (None, t.format)]
        passed = [compare(target, folder, arguments, baseline) for target in chosen]
        return 0 if all(passed) else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
