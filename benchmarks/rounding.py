"""How long calibrated rounding takes: against the peer's learned mode, and against a layer's size.

    python benchmarks/rounding.py --peer-python ~/peer/bin/python

Two things, each with its bar:

- Block 1 of the sentence encoder (six layers), file to file: ours with the calibration already
  captured, the peer at its defaults (Prodigy, up to 4000 steps). The peer's start-up is the time
  of the same command with ``--simple``, which only rounds; ours begins at the call. Seconds on the
  clock and, since other programs may run beside, of processor time.
- Layers of growing size, rounded against synthetic correlated tokens: seconds for inputs N and
  outputs M, and the rate at which N²·M + N³ multiplications are done.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from encoder import load, texts, write_weights
from ours import Ours, calibrate
from peers import Peer
from rows import ROWS
from scoring import Bars, table

from roundsmith.converters.rounding.calibrated import calibrated
from roundsmith.converters.rounding.problem import Activations
from roundsmith.layouts import get_format

LAYERS = r"^encoder\.layer\.1\."
TITLES = ("fp8 tensor", "mxfp8", "nvfp4")
FORMATS = ("float8_e4m3fn", "nvfp4")
SIZES = ((384, 384), (1536, 384), (384, 1536), (1536, 1536), (3072, 3072), (3072, 12288))
BAR_SHAPE = (3072, 3072)
TOKENS = 4096


class Spent(NamedTuple):
    """Seconds on the clock, and of processor time of this process and its children."""

    clock: float
    processor: float

    def less(self, other: Spent) -> Spent:
        """What is left after ``other``."""
        return Spent(self.clock - other.clock, self.processor - other.processor)


def spend(work: Callable[[], object]) -> Spent:
    """Time some work."""

    def processor() -> float:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)

    began = time.perf_counter(), processor()
    work()
    return Spent(time.perf_counter() - began[0], processor() - began[1])


def against_peer(bars: Bars, python: Path, titles: Sequence[str]) -> None:
    """Six layers, ours and the peer's learned mode."""
    encoder, vocabulary = load()
    rows = [row for row in ROWS if row.title in titles]
    lines, ratios = [], {}
    with tempfile.TemporaryDirectory(prefix="roundsmith-rounding-") as temporary:
        folder = Path(temporary)
        source, statistics = folder / "source.safetensors", folder / "calibration.safetensors"
        write_weights(encoder, source, LAYERS)
        captured = spend(lambda: calibrate(encoder, texts(vocabulary)[0], statistics))
        print(f"capturing 200 sentences: {captured.clock:.2f} s (once a model, not counted below)")
        ours, peer = Ours(source, folder / "output.safetensors", statistics), Peer(python)
        ours.quantize(rows[0], "calibrated")  # imports
        for row in rows:
            options = row.peer or ()
            mine = spend(lambda row=row: ours.quantize(row, "calibrated"))
            start = spend(lambda options=options: peer.convert(source, options))
            whole = spend(lambda options=options: peer.convert(source, options, learned=True))
            theirs = whole.less(start)
            ratios[row.title] = theirs.clock / mine.clock
            numbers = (*mine, *start, *theirs, ratios[row.title], theirs.processor / mine.processor)
            lines.append([row.title, *(f"{x:.2f}" for x in numbers)])
    print("\nSix layers, seconds (clock, processor); the peer's without its start-up")
    head = ("ours", "cpu", "peer's start", "cpu", "peer learned", "cpu", "× clock", "× cpu")
    table(["", *head], lines)
    for title, ratio in ratios.items():
        bars.at_least(f"{title}, times faster than the peer's learned mode", ratio, 15, "×")


def tokens(features: int) -> torch.Tensor:
    """Correlated synthetic tokens ``[TOKENS, features]``: a falling spectrum and some outliers."""
    rng = torch.Generator().manual_seed(features)
    rank = max(features // 4, 1)
    mixing = torch.randn(rank, features, generator=rng) / rank**0.5
    falling = torch.linspace(0, -3, rank).exp()
    x = torch.randn(TOKENS, rank, generator=rng) * falling @ mixing
    x += 0.1 * torch.randn(TOKENS, features, generator=rng)
    return x * torch.exp(0.5 * torch.randn(features, generator=rng))


def against_size(bars: Bars, formats: Sequence[str], repeat: int) -> None:
    """One layer at a time, growing."""
    lines, least = [], {}
    for out_features, in_features in SIZES:
        x = tokens(in_features)
        held, fitted = x[: TOKENS // 8], x[TOKENS // 8 :]
        rng = torch.Generator().manual_seed(0)
        w = 0.02 * torch.randn(out_features, in_features, generator=rng)
        given = Activations(fitted.T @ fitted / len(fitted), len(fitted), held)
        for name in formats:
            fmt = get_format(name)
            solve = partial(calibrated, w, fmt.grid, fmt.geometry(fmt.bind()), given)
            times = [spend(solve).clock for _ in range(repeat)]
            work = in_features**2 * out_features + in_features**3
            least[name, (out_features, in_features)] = min(times)
            shape = f"{out_features} × {in_features}"
            lines.append([name, shape, f"{min(times):.2f}", f"{work / min(times) / 1e9:.1f}"])
    print(f"\nOne layer, {torch.get_num_threads()} threads, {TOKENS} tokens, best of {repeat}")
    table(["", "out × in", "seconds", "10⁹ products of N²M + N³ a second"], lines)
    for name in formats:
        what = f"{name}, {BAR_SHAPE[0]} × {BAR_SHAPE[1]}"
        bars.at_most(what, least[name, BAR_SHAPE], 3, "s")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", type=Path, help="interpreter that has convert-to-quant")
    parser.add_argument("--rows", nargs="*", default=TITLES, help="rows of the quality table")
    parser.add_argument("--formats", nargs="*", default=FORMATS, help="formats of growing layers")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1, help="rounds of growing layers")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status says whether every bar was met."""
    arguments = parse(words)
    os.environ["OMP_NUM_THREADS"] = str(arguments.cores)  # the peer's
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    torch.set_num_threads(arguments.cores)
    bars = Bars()
    if arguments.peer_python:
        against_peer(bars, arguments.peer_python, arguments.rows)
    against_size(bars, arguments.formats, arguments.repeat)
    print()
    return bars.status


if __name__ == "__main__":
    sys.exit(main())
