"""``roundsmith inspect``: what a checkpoint holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._bar import Bar
from ._files import check_files, side_file


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "inspect", help="show what a checkpoint holds, and what is wrong with it"
    )
    parser.add_argument("src", type=Path, help=".safetensors file, index of shards, or folder")
    add = parser.add_argument
    add("--deep", action="store_true", help="read all codes, not a sample of each layer's")
    add("--original", type=Path, metavar="FILE", help="score weights against it; reads both files")
    add("--chart", type=Path, metavar="FILE", help="draw bytes and SNR by block into a PNG")
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    from ..converters.inspecting import inspect_file

    chart = side_file("--chart", args.chart, suffix=".png")
    check_files({"SRC": args.src, "--original": args.original}, sides=[chart])
    with Bar(silent=args.json) as bar:
        found = inspect_file(args.src, deep=args.deep, original=args.original, progress=bar)
    try:
        if chart is not None:
            from ..converters.inspecting import charts

            chart.draw(charts.draw(found))
    finally:
        print(found.json() if args.json else found.table())
    return 0
