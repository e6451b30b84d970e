"""``roundsmith compare``: a quantized checkpoint beside the original."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ._bar import Bar


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("compare", help="score a quantized checkpoint layer by layer")
    add = parser.add_argument
    add("reference", type=Path, help="the original: .safetensors file, index of shards, or folder")
    add("quantized", type=Path, help="the quantized one; either may be in any format")
    add("--calibration", type=Path, metavar="FILE",
        help="what the layers are fed: scores their outputs, not only their weights")  # fmt: skip
    add("--min-snr", type=_decibels, metavar="DB",
        help="fail (exit status 1) where the mean SNR is below")  # fmt: skip
    add("--worst", type=_count, default=16, metavar="N", help="layers to print and draw (16)")
    add("--picture", type=Path, metavar="FILE", help="draw the worst layers into a PNG file")
    add("--device", default="auto", help="where layers run: auto, cpu, cuda, ...")
    add("--json", action="store_true", help="print JSON for machines; no progress bar")
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    from ..converters.comparing import charts, compare_files

    if args.picture is not None and not args.picture.resolve().parent.is_dir():
        raise RecipeError(f"--picture {args.picture}: there is no folder {args.picture.parent}")
    with Bar(silent=args.json) as bar:
        found = compare_files(
            args.reference, args.quantized, args.calibration, device=args.device, progress=bar
        )
    if args.picture is not None:
        charts.save(found, args.picture, args.worst)
    print(found.json() if args.json else found.table(args.worst), flush=True)
    found.require(args.min_snr)
    if args.picture is not None:
        print(f"picture: {args.picture}", file=sys.stderr)
    return 0


def _decibels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of dB")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of layers")
    return int(text)
