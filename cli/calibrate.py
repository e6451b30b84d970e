"""``roundsmith calibrate``: input scales into a quantized file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ._bar import Bar
from ._files import check_files

MODES = ("measured", "random", "lora", "import", "weight", "constant")


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "calibrate", help="write input scales into a copy of a quantized file"
    )
    parser.add_argument("src", type=Path, help="quantized .safetensors file, index, or folder")
    parser.add_argument("dst", type=Path, nargs="?", help="by default SRC-calibrated.safetensors")
    parser.add_argument("--mode", choices=MODES,
                        help="where the scales come from; by default what is given below, "
                        "else random, an estimate")  # fmt: skip
    add = parser.add_argument
    add("--calibration", type=Path, metavar="FILE", help="measured: statistics of the inputs")
    add("--lora", type=Path, action="append", metavar="FILE", help="lora: its directions; repeat")
    add("--scales", type=Path, metavar="FILE", help="import: JSON or safetensors with input scales")
    add("--constant", type=float, metavar="X", help="constant: the scale of every layer (1)")
    add("--percentile", type=float, metavar="P", help="of |x| (99.9); 100: the true maximum")
    add("--samples", type=int, metavar="N", help="random, lora: tokens (64)")
    add("--seed", type=int, metavar="N", help="random, lora: seed (0)")
    add("--device", help="random, lora: auto, cpu, cuda, ...")
    add("--layers", metavar="REGEX", help="only these layers")
    add("--overwrite", action="store_true", help="replace an existing DST")
    add("--table", action="store_true", help="print every layer")
    add("--json", action="store_true", help="print JSON for machines; no progress bar")
    parser.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    from ..converters.corrections import CalibrateOptions, calibrate_file

    given = {
        "measured": args.calibration,
        "lora": args.lora,
        "import": args.scales,
        "constant": args.constant,
    }
    mode = args.mode or next((name for name, x in given.items() if x is not None), "random")
    if args.constant is not None and mode != "constant":
        raise RecipeError(f"--constant and mode {mode} contradict each other: give one")
    settings = {
        name: value
        for name in ("percentile", "samples", "seed", "device", "layers", "scales", "constant")
        if (value := getattr(args, name)) is not None
    }
    options = CalibrateOptions(mode=mode, loras=tuple(args.lora or ()), **settings)
    src = args.src.resolve()
    stem = src.name.removesuffix(".index.json").removesuffix(".safetensors")
    dst = args.dst or src.with_name(f"{stem}-calibrated.safetensors")
    check_files(
        {"SRC": args.src, "--calibration": args.calibration, "--lora": args.lora,
         "--scales": args.scales},
        {"DST": dst},
    )  # fmt: skip
    with Bar(silent=args.json) as bar:
        report = calibrate_file(
            args.src, dst, options, args.calibration, progress=bar, overwrite=args.overwrite
        )
    if args.json:
        print(report.json())
    elif args.table:
        print(report.table())
    else:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{report.path}: {report.summary()}")
    return 0
