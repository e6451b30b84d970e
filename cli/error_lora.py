"""``roundsmith error-lora``: a LoRA that corrects a quantized model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ._bar import Bar
from ._files import check_files
from ._tool import beside


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "error-lora", help="extract a LoRA that takes back part of the rounding error"
    )
    parser.add_argument("original", type=Path, help="the model before")
    parser.add_argument("quantized", type=Path, help="the quantized model")
    parser.add_argument("dst", type=Path, nargs="?", help="by default QUANTIZED_lora.safetensors")
    add = parser.add_argument
    add("--rank", type=int, metavar="R", help="of each layer's correction (32)")
    add("--layers", choices=("all", "selected"),
        help="every quantized layer (all), or a few of the first block, by shape")  # fmt: skip
    add("--target", metavar="REGEX", help="only these layers; wins over the options below")
    add("--depth", type=int, metavar="N", help="only blocks with an index below N")
    add("--aspect", type=float, metavar="X", help="only layers whose sides differ at most X times")
    add("--calibration", type=Path, metavar="FILE", help="minimise the outputs' error with it")
    add("--seed", type=int, metavar="N", help="of the sketch large matrices are factored by")
    add("--device", help="auto, cpu, cuda, cuda:1, ...")
    add("--overwrite", action="store_true", help="replace an existing DST")
    add("--table", action="store_true", help="print every layer")
    add("--json", action="store_true", help="print JSON for machines; no progress bar")
    parser.set_defaults(run=_error_lora)


def _error_lora(args: argparse.Namespace) -> int:
    from ..converters.corrections import ErrorLoraOptions, error_lora_file
    from ..converters.corrections.error_lora_report import HOW_TO_APPLY

    settings = {
        name: value
        for name in ErrorLoraOptions.model_fields
        if (value := getattr(args, name)) is not None
    }
    options = ErrorLoraOptions(**settings)
    dst = args.dst or beside(args.quantized, "_lora.safetensors")
    check_files(
        {"ORIGINAL": args.original, "QUANTIZED": args.quantized, "--calibration": args.calibration},
        {"DST": dst},
    )
    with Bar(silent=args.json) as bar:
        report = error_lora_file(
            *(args.original, args.quantized, dst, options, args.calibration),
            progress=bar,
            overwrite=args.overwrite,
        )
    if args.json:
        print(report.json())
    elif args.table:
        print(report.table())
    else:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{report.path}: {report.summary()} ({report.seconds:.1f} s)\n{HOW_TO_APPLY}")
    return 0
