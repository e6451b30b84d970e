"""``roundsmith budget``: a format for each layer, for a size or a quality."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ._bar import Bar
from ._files import check_files, side_file
from ._recipe import add_recipe, make_recipe, recipe_files

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("budget", help="choose a format for each layer, for a size")
    parser.add_argument("src", type=Path, help=".safetensors file, index of shards, or folder")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--size", metavar="BYTES", help="of the whole file, at most: 6.5GB, 800MB")
    target.add_argument("--bits", type=float, help="mean bits of a weight, at most")
    target.add_argument("--min-snr", type=float, metavar="DB", help="of the layers' mean error")
    add = parser.add_argument
    add("--calibration", type=Path, metavar="FILE", help="statistics; without, weights decide")
    add("--from", dest="formats", nargs="+", metavar="ID", help="formats to choose from")
    add("--save", type=Path, metavar="FILE", help="write the recipe, for quantize --recipe")
    add("--chart", type=Path, metavar="FILE", help="draw size against quality into a PNG")
    add("--overwrite", action="store_true", help="replace files that exist")
    add_recipe(parser)
    parser.set_defaults(run=_budget)


def _budget(args: argparse.Namespace) -> int:
    from ..converters.choosing import Target, curve, fit_budget_file

    target = Target(
        size=None if args.size is None else _bytes(args.size),
        bits=args.bits,
        snr=args.min_snr,
        formats=None if args.formats is None else tuple(args.formats),
    )
    recipe = make_recipe(args)
    save = side_file("--save", args.save, args.overwrite)
    chart = side_file("--chart", args.chart, args.overwrite)
    check_files(
        {"SRC": args.src, "--calibration": args.calibration, **recipe_files(args, recipe)},
        sides=[save, chart],
    )
    with Bar(silent=args.json) as bar:
        found = fit_budget_file(args.src, target, recipe, args.calibration, bar)
    try:
        if save is not None:
            save.write(json.dumps(json.loads(found.recipe.to_json()), indent=2))
        if chart is not None:
            chart.draw(curve.draw(found))
    finally:
        print(found.json() if args.json else found.table())
    return 0


def _bytes(text: str) -> int:
    """``6.5GB`` → 6500000000; decimal units."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmg]?)b?\s*", text.lower())
    if match is None:
        raise RecipeError(f"--size {text!r}: give bytes, for example 6.5GB or 800MB")
    return int(float(match[1]) * _UNITS[match[2]])
