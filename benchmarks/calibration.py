"""What capturing costs: memory under a budget, the time of a captured step, what a budget changes.

    python benchmarks/calibration.py

The demo's Flux samples its ten digits twice, 12 Euler steps each: alone, and captured under budgets
of 64 MB and 1 GB, in one pass (what does not fit is sampled more thinly) and in as many passes over
groups of layers as the budget needs. Each is a process of its own; its peak is the kernel's count
of resident pages (Linux), from when the model is loaded until the file is written. The statistics
are compared with those of the largest budget. What differs should be sampling noise: two captures
at one budget that draw other tokens differ by √2 of that budget's, and budgets with noises a and b
by √(a² + b²).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from scoring import Bars, mean, table

from roundsmith.converters.calibration import Calibration, Capture, plan_passes
from roundsmith.tests.models import FOLDER, MODEL_FILE

MB = 1024**2
STEPS, SAMPLES, MAX_TOKENS = 12, 2, 4096
CASES = {
    "64 MB": (64, False, 0),
    "64 MB, other tokens": (64, False, 1),
    "64 MB, in passes": (64, True, 0),
    "1 GB": (1024, False, 0),
    "1 GB, other tokens": (1024, False, 1),
}
REFERENCE = "1 GB"
OTHER = {
    "64 MB": "64 MB, other tokens",
    "64 MB, in passes": "1 GB, other tokens",  # passes keep what one pass under 1 GB does
    REFERENCE: "1 GB, other tokens",
}
"""What draws other tokens under the same conditions."""


# ---- what each process does ----------------------------------------------------------------------


def sampler(prompts: Path) -> tuple[torch.nn.Module, Callable[[], object]]:
    """The demo's model, and what samples every digit with it."""
    from roundsmith.tests.models.flux import Flux
    from roundsmith.tests.models.sampling import sample, starting_noise

    told = load_file(prompts)
    model = Flux()
    model.load_state_dict({k: v.float() for k, v in load_file(FOLDER / MODEL_FILE).items()})
    model.eval()

    def run() -> None:
        for seed in range(SAMPLES * len(told["pooled"])):
            at = slice(seed % len(told["pooled"]), seed % len(told["pooled"]) + 1)
            noise = starting_noise(1, 1000 + seed)
            sample(model, noise, told["context"][at], told["pooled"][at], STEPS)

    return model, run


def forget_peak() -> None:
    """Count the peak anew from here on: importing and loading have peaks of their own."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes resident since then."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024


def record(
    model: torch.nn.Module, run: Callable[[], object], layers: list[str], memory: int, seed: int
) -> Calibration:
    """One pass over some layers."""
    capture = Capture(model, layers, max_tokens=MAX_TOKENS, memory=memory, seed=seed)
    with capture.watching():
        run()
    return capture.finish()


def child(arguments: argparse.Namespace) -> None:
    """One case: sample, captured or not, and print what it took."""
    model, run = sampler(arguments.prompts)
    forget_peak()
    began, slowdown, passes = time.perf_counter(), 1.0, 0
    if arguments.case is None:
        run()
    else:
        megabytes, several, seed = CASES[arguments.case]
        capture = Capture(model, max_tokens=MAX_TOKENS)  # for the widths
        groups = [list(capture.widths)]
        if several:
            groups = plan_passes(capture.widths, MAX_TOKENS, megabytes * MB)
        for index, group in enumerate(groups):
            part = record(model, run, group, megabytes * MB, seed)
            slowdown = max(slowdown, part.settings["slowdown"])
            part.save(arguments.folder / f"{index}.safetensors")
            del part  # before the next pass
        passes = len(groups)
    seconds = time.perf_counter() - began
    print(json.dumps({"peak": peak(), "seconds": seconds, "slowdown": slowdown, "passes": passes}))


# ---- and what is made of it ----------------------------------------------------------------------


def measure(case: str | None, prompts: Path, folder: Path) -> dict[str, float]:
    """Run a case in a process of its own."""
    folder.mkdir()
    words = [sys.executable, __file__, "--prompts", str(prompts), "--folder", str(folder)]
    words += ["--child", *([] if case is None else ["--case", case])]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{case}: {run.stderr}")
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def statistics(folder: Path) -> Calibration:
    """What a case captured, over all its passes."""
    parts = [Calibration.load(path) for path in sorted(folder.glob("*.safetensors"))]
    return Calibration.join(parts)


def difference(one: Calibration, other: Calibration) -> tuple[float, float]:
    """Between two calibrations, over all tokens and between second moments.

    Returns:
        The largest relative difference of counts, means and maxima, which are over all tokens seen;
        and the mean over the layers of ‖H₁ − H₂‖ / ‖H₂‖.
    """
    exact, moments = [], []
    for layer in other.layers:
        a, b = one.record(layer), other.record(layer)
        assert a is not None and b is not None
        for x, y in ((a.mean, b.mean), (a.absmax, b.absmax)):
            exact.append(float((x - y).norm() / y.norm()))
        exact.append(abs(a.count / b.count - 1))
        h, g = a.split().moment, b.split().moment
        moments.append(float((h - g).norm() / g.norm()))
    return max(exact), mean(moments)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status says whether every bar was met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--prompts", "--folder"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.child:
        with nullcontext() if arguments.case else torch.inference_mode():
            child(arguments)
        return 0
    from roundsmith.tests.models.text import PROMPTS, encode

    bars = Bars()
    with tempfile.TemporaryDirectory(prefix="roundsmith-calibration-") as temporary:
        folder = Path(temporary)
        context, pooled = encode(PROMPTS)
        save_file({"context": context, "pooled": pooled}, folder / "prompts.safetensors")
        alone = measure(None, folder / "prompts.safetensors", folder / "alone")
        found, made = {}, {}
        for index, case in enumerate(CASES):
            at = folder / str(index)
            found[case] = measure(case, folder / "prompts.safetensors", at)
            made[case] = statistics(at)
        apart = {case: difference(made[case], made[REFERENCE]) for case in CASES}
        noises = {
            case: difference(made[case], made[other])[1] / math.sqrt(2)
            for case, other in OTHER.items()
        }
    runs = SAMPLES * len(PROMPTS)
    print(f"{runs} samples of {STEPS} steps, {len(made[REFERENCE].layers)} layers; ", end="")
    print(f"not captured: {alone['seconds']:.1f} s, peak {alone['peak'] / MB:.0f} MB")
    lines = []
    for case, numbers in found.items():
        grown = (numbers["peak"] - alone["peak"]) / MB
        cells = (numbers["passes"], numbers["seconds"], numbers["slowdown"], grown)
        text = (f"{cells[0]:.0f}", f"{cells[1]:.1f}", f"{cells[2]:.2f}", f"{cells[3]:.0f}")
        lines.append([case, *text, *(f"{x:.1e}" for x in apart[case])])
    head = ["passes", "seconds", "× a step", "peak grows MB", "mean, absmax", "second moment"]
    table(["", *head], lines)
    print()
    for case, numbers in found.items():
        budget = CASES[case][0]
        grown = (numbers["peak"] - alone["peak"]) / MB
        bars.at_most(f"{case}, peak grows by", grown, 1.2 * budget, "MB")
        if case in OTHER and case != REFERENCE:
            bars.at_most(f"{case}, mean and absmax differ by", 1e6 * apart[case][0], 10, "ppm")
            noise = apart[case][1] / math.hypot(noises[case], noises[REFERENCE])
            bars.at_most(f"{case}, second moment, of sampling noise", noise, 1.5, "×")
    return bars.status


if __name__ == "__main__":
    sys.exit(main())
