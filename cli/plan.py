"""``roundsmith plan``: what quantize would do, to the byte."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._files import check_files, side_file
from ._recipe import add_recipe, make_recipe, recipe_files


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("plan", help="show what quantize would do; nothing is written")
    parser.add_argument("src", type=Path, help=".safetensors file, index of shards, or folder")
    parser.add_argument("--template", type=Path, metavar="FILE",
        help="write a layer config to edit: what is planned for each linear layer")  # fmt: skip
    add_recipe(parser)
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from ..converters import plan_file
    from ..converters.plan_views import plan_json, template
    from ..converters.progress import human_bytes
    from ..converters.report import make_report

    recipe = make_recipe(args)
    layer_config = side_file("--template", args.template)
    check_files({"SRC": args.src, **recipe_files(args, recipe)}, sides=[layer_config])
    plan = plan_file(args.src, recipe)
    if layer_config is not None:
        layer_config.write(template(plan))
    if args.json:
        print(plan_json(plan))
    else:
        print(make_report(plan, {}, ()).table())
        print(f"the file would take {plan.size:,} bytes ({human_bytes(plan.size)})")
    return 0
