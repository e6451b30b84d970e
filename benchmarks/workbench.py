"""File tools on a large file: time against copying it, and peak memory.

    python benchmarks/workbench.py --dir /fast/disk

Writes an FP8 checkpoint of 1.9 GB (80 matrices with a Flux's names, one scale each), edits its
settings, plans and inspects it, and removes everything. Each alternative is a process of its own;
its time is from start to exit, imports included (but for the edit in a process that runs already,
as ComfyUI does), its peak the kernel's count of resident pages. Rounds are interleaved and
the median counts. ``cp`` waits for the disk (``sync``), and so do we. The source is in the page
cache.
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
from pathlib import Path

# Nothing big may be imported here: a child's peak counts from the size of what forked it.
MB = 1e6
SOURCE = """
import json, sys, torch
from safetensors.torch import save_file
tensors, blocks = {}, int(sys.argv[2])
shapes = {"double_blocks.%d.img_attn.qkv": (9216, 3072), "single_blocks.%d.linear2": (3072, 6144)}
generator = torch.Generator().manual_seed(0)
drawn = {m * n: torch.randn(m * n, generator=generator).mul_(100) for m, n in shapes.values()}
for block in range(blocks):
    for name, (m, n) in shapes.items():
        layer = name % block
        weight = drawn[m * n].roll(block).clamp_(-448, 448).view(m, n)
        tensors[layer + ".weight"] = weight.to(torch.float8_e4m3fn)
        tensors[layer + ".weight_scale"] = torch.tensor(1e-4 * (block + 1))
        conf = json.dumps({"format": "float8_e4m3fn"}).encode()
        tensors[layer + ".comfy_quant"] = torch.frombuffer(bytearray(conf), dtype=torch.uint8)
save_file(tensors, sys.argv[1])
"""


API = """
import sys, time
from pathlib import Path
from roundsmith.converters.editing import EditOptions, edit_file
from roundsmith.converters.patching import Destination
began = time.perf_counter()
options = EditOptions(set={"full_precision_matrix_mult": True})
edit_file(sys.argv[1], Destination(Path(sys.argv[2])), options)
print("SECONDS", time.perf_counter() - began)
"""


def run(command: Sequence[str | Path]) -> tuple[float, float]:
    """Run a command; return seconds (those it prints, if it does) and peak resident bytes.

    Raises:
        SystemExit: the command failed; its output is shown.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+b") as log:
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(words)[:300]}\n{log.read().decode()[-3000:]}")
        log.seek(0)
        printed = log.read().decode(errors="replace").rpartition("SECONDS ")
    if printed[1]:
        seconds = float(printed[2])
    return seconds, usage.ru_maxrss * 1024.0


def commands(source: Path, output: Path) -> dict[str, list[str | Path]]:
    """Every alternative; the last word of those that write is the output."""
    ours: list[str | Path] = [sys.executable, "-m", "roundsmith"]
    edit = [*ours, "edit", source, output, "--set", "full_precision_matrix_mult=true"]
    return {
        "cp + sync": ["sh", "-c", 'cp "$0" "$1" && sync "$1"', source, output],
        "edit, in a process": [sys.executable, "-c", API, source, output],
        "edit": edit,
        "migrate --to fp8_scaled": [*ours, "migrate", source, output, "--to", "fp8_scaled"],
        "edit --dry-run": [*edit, "--dry-run"],
        "plan": [*ours, "plan", source, "--format", "int8_tensorwise", "--preset", "none"],
        "inspect": [*ours, "inspect", source],
        "inspect --chart": [*ours, "inspect", source, "--chart", output.with_suffix(".png")],
        "inspect --deep": [*ours, "inspect", source, "--deep"],
    }


def prepare(source: Path, output: Path) -> None:
    """Remove the output, let the disk settle, and put the source into the page cache."""
    output.unlink(missing_ok=True)
    os.sync()
    with source.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def verdict(passed: bool, what: str, value: float, bar: str) -> bool:
    """Print one bar."""
    print(f"  {'PASS' if passed else 'FAIL'}  {what}: {value:.2f} (bar {bar})")
    return passed


def measure(source: Path, output: Path, rounds: int) -> bool:
    """Measure every alternative; print the table and the bars."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for name, command in commands(source, output).items():
            prepare(source, output)
            took, peak = run(command)
            seconds.setdefault(name, []).append(took)
            peaks[name] = max(peaks.get(name, 0.0), peak)
    times = {name: statistics.median(found) for name, found in seconds.items()}
    copy = times["cp + sync"]
    print(f"\n{source.stat().st_size / MB:.0f} MB, load average {os.getloadavg()[0]:.1f}")
    print(f"{'':26}{'seconds':>9}{'× copy':>8}{'peak MB':>9}")
    for name, found in seconds.items():
        row = f"{times[name]:9.2f}{times[name] / copy:8.2f}{peaks[name] / MB:9.0f}"
        print(f"{name:26}{row}   ({', '.join(f'{s:.2f}' for s in found)})")
    within, shell = times["edit, in a process"] / copy, times["edit"] / copy
    bars = [
        verdict(within <= 1.5, "edit in a running process, copies", within, "≤ 1.5"),
        verdict(shell <= 1.5, "edit from the shell, copies", shell, "≤ 1.5"),
        verdict(peaks["edit"] <= 400 * MB, "edit, peak MB", peaks["edit"] / MB, "≤ 400"),
        verdict(times["plan"] <= 3, "plan, seconds", times["plan"], "≤ 3"),
        verdict(times["inspect"] <= 3, "inspect, seconds", times["inspect"], "≤ 3"),
    ]
    return all(bars)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status says whether every bar was met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, help="where the files go (4 GB); default: temporary")
    parser.add_argument("--blocks", type=int, default=40, help="pairs of matrices (47 MB each)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    arguments = parser.parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="roundsmith-benchmark-", dir=arguments.dir))
    try:
        source = folder / "source.safetensors"
        run([sys.executable, "-c", SOURCE, source, str(arguments.blocks)])
        return 0 if measure(source, folder / "output.safetensors", arguments.repeat) else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
