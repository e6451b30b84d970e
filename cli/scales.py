"""``roundsmith scales``: input scales into a quantized file, or out of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ._bar import Bar
from ._files import SideFile, check_files
from ._tool import add_tool, beside, destination


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "scales", help="set the input scales of a quantized file, or export them as JSON"
    )
    add_tool(parser, "-scaled")
    one = parser.add_mutually_exclusive_group(required=True).add_argument
    one("--constant", type=float, metavar="X", help="the same scale for every layer")
    one("--calibration", type=Path, metavar="FILE", help="from statistics of the layers' inputs")
    one("--import", dest="scales", type=Path, metavar="FILE",
        help='from JSON, {"layer": 0.015}, or another safetensors file')  # fmt: skip
    one("--weight", action="store_true", help="equal to the weight's scale, as T5 files have it")
    one("--export", nargs="?", type=Path, const=Path(), metavar="FILE",
        help="write them to FILE (SRC-input-scales.json)")  # fmt: skip
    add = parser.add_argument
    add("--percentile", type=float, metavar="P", help="calibration: of |x| (99.9)")
    add("--layers", metavar="REGEX", help="only these layers")
    parser.set_defaults(run=_scales)


def _scales(args: argparse.Namespace) -> int:
    return _set(args) if args.export is None else _export(args)


def _set(args: argparse.Namespace) -> int:
    from ..converters.corrections import CalibrateOptions, calibrate_file

    modes = {
        "constant": args.constant is not None,
        "measured": args.calibration is not None,
        "import": args.scales is not None,
        "weight": args.weight,
    }
    settings = {
        name: value
        for name in ("constant", "scales", "percentile", "layers")
        if (value := getattr(args, name)) is not None
    }
    mode = next(name for name, given in modes.items() if given)
    options = CalibrateOptions(mode=mode, **settings)
    goal = destination(args)
    check_files({"--calibration": args.calibration, "--import": args.scales}, {"DST": goal.path})
    with Bar(silent=args.json) as bar:
        report = calibrate_file(args.src, goal, options, args.calibration, progress=bar)
    if args.json:
        print(report.json())
    elif args.table or args.dry_run:
        print(report.table())
    else:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{report.path}: {report.summary()}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from ..converters.corrections import export_input_scales
    from ..errors import RecipeError

    if args.dst is not None or args.in_place or args.percentile is not None:
        raise RecipeError("--export only reads SRC: leave out DST, --in-place and --percentile")
    path = args.export if args.export != Path() else beside(args.src, "-input-scales.json")
    side = None if args.dry_run else SideFile("--export", path, args.overwrite)
    check_files({"SRC": args.src}, sides=[side])
    found = export_input_scales(args.src, args.layers)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    if side is not None:
        side.write(found.json())
    if args.json:
        print(json.dumps({"path": "" if side is None else str(path), "scales": found.scales}))
    elif side is None:
        print(found.json())
    else:
        print(f"{path}: {len(found.scales)} input scales")
    return 0
