"""``roundsmith hybrid``: MXFP8 files that run as FP8 on older GPUs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._bar import Bar
from ._files import check_files
from ._tool import add_tool, destination, show


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "hybrid", help="give an MXFP8 file FP8 scales, to run by on older GPUs"
    )
    add_tool(parser, "-hybrid")
    add = parser.add_argument
    add("--scalar", choices=("largest", "tight"),
        help="the largest block scale (default), or the largest weight over 448")  # fmt: skip
    add("--import", dest="source", type=Path, metavar="FILE",
        help="the scales of a tensorwise FP8 file of the same model")  # fmt: skip
    add("--layers", metavar="REGEX", help="only these layers")
    parser.set_defaults(run=_hybrid)


def _hybrid(args: argparse.Namespace) -> int:
    from ..converters.hybrid import HybridOptions, make_hybrid
    from ..errors import RecipeError

    if args.scalar is not None and args.source is not None:
        raise RecipeError("--scalar and --import contradict each other: give one")
    scalar = args.scalar or ("largest" if args.source is None else "import")
    options = HybridOptions(scalar=scalar, source=args.source, layers=args.layers)
    goal = destination(args)
    check_files({"--import": args.source}, {"DST": goal.path})
    with Bar(silent=args.json) as bar:
        report = make_hybrid(args.src, goal, options, progress=bar)
    return show(report, args)
