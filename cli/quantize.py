"""``roundsmith quantize``: a checkpoint into a quantized one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._bar import Bar
from ._files import check_files, side_file
from ._recipe import add_recipe, make_recipe, recipe_files

if TYPE_CHECKING:
    from ..converters.report import Report


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("quantize", help="quantize a checkpoint into a new file")
    parser.add_argument("src", type=Path, help=".safetensors file, index of shards, or folder")
    parser.add_argument(
        "dst", type=Path, nargs="?", help="file to write; by default SRC with the format's name"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing DST, LoRA and report"
    )
    measured = "statistics of the layers' inputs, as the calibration nodes save them"
    parser.add_argument("--calibration", type=Path, metavar="FILE", help=measured)
    parser.add_argument("--error-lora", type=int, nargs="?", const=32, metavar="RANK",
                        help="also write DST_lora, which takes back part of the error")  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FILE", help="save the report as JSON")
    parser.add_argument("--table", action="store_true", help="print every layer")
    add_recipe(parser)
    parser.set_defaults(run=_quantize)


def _quantize(args: argparse.Namespace) -> int:
    from ..converters import quantize_file
    from ..converters.corrections import ErrorLoraOptions

    recipe = make_recipe(args)
    src = args.src.resolve()
    stem = src.name.removesuffix(".index.json").removesuffix(".safetensors")
    dst = args.dst or src.with_name(f"{stem}-{recipe.format}.safetensors")
    lora = None if args.error_lora is None else dst.with_name(f"{dst.stem}_lora.safetensors")
    report_file = side_file("--report", args.report, args.overwrite)
    check_files(
        {"SRC": args.src, "--calibration": args.calibration, **recipe_files(args, recipe)},
        {"DST": dst, "--error-lora": lora},
        [report_file],
    )
    args.finished_layers = dst.with_name(f"{dst.name}.roundsmith-layers")  # told of after Ctrl-C
    with Bar(silent=args.json) as bar:
        report = quantize_file(
            *(args.src, dst, recipe),
            calibration=args.calibration,
            error_lora=None if args.error_lora is None else ErrorLoraOptions(rank=args.error_lora),
            progress=bar,
            overwrite=args.overwrite,
        )
    try:
        if report_file is not None:
            report_file.write(report.json())
    finally:
        _show(report, dst, args)
    return 0


def _show(report: Report, dst: Path, args: argparse.Namespace) -> None:
    if args.json:
        print(report.json())
    elif args.table:
        print(report.table())
    else:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{dst}: {report.summary()} ({report.seconds:.1f} s)")
