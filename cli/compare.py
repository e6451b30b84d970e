"""``roundsmith compare``: a quantized checkpoint beside the original."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from ._bar import Bar
from ._files import check_files, side_file


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "compare",
        help="score a quantized checkpoint layer by layer",
        description="Score a quantized checkpoint layer by layer. What both models sample (SNR and "
        "PSNR of latents, pictures side by side) is compared by the Compare Models node in "
        "ComfyUI.",
    )
    add = parser.add_argument
    add("reference", type=Path, help="the original: .safetensors file, index of shards, or folder")
    add("quantized", type=Path, help="the quantized one; either may be in any format")
    add("--calibration", type=Path, metavar="FILE",
        help="what the layers are fed: scores their outputs, not only their weights")  # fmt: skip
    add("--min-snr", type=_decibels, metavar="DB",
        help="fail (exit status 1) where the mean SNR is below: of the layers' outputs as "
        "executed, with --calibration; without, of the weights, which calibrated rounding lowers "
        "on purpose, so that the better file may fail. NaN, and layers that are missing, always "
        "fail")  # fmt: skip
    add("--worst", type=_count, default=16, metavar="N", help="layers to print and draw (16)")
    add("--picture", type=Path, metavar="FILE", help="draw the worst layers into a PNG file")
    add("--device", default="auto", help="where layers run: auto, cpu, cuda, ...")
    add("--json", action="store_true", help="print JSON for machines; no progress bar")
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    from ..converters.comparing import charts, compare_files

    picture = side_file("--picture", args.picture, suffix=".png")
    check_files(
        {
            "REFERENCE": args.reference,
            "QUANTIZED": args.quantized,
            "--calibration": args.calibration,
        },
        sides=[picture],
    )
    with Bar(silent=args.json) as bar:
        found = compare_files(
            args.reference, args.quantized, args.calibration, device=args.device, progress=bar
        )
    try:
        if picture is not None:
            picture.draw(charts.draw(found, args.worst))
    finally:
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
