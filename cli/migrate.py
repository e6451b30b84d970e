"""``roundsmith migrate``: checkpoints of older layouts."""

from __future__ import annotations

import argparse
from typing import Any

from ._bar import Bar
from ._tool import add_tool, destination, show


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "migrate", help="convert a legacy checkpoint, or clean it; codes are copied as they are"
    )
    add_tool(parser, "-migrated")
    add = parser.add_argument
    add("--to", choices=("comfy_quant", "same", "fp8_scaled"),
        help="today's layout (default), cleaned in its own, or the older FP8 one")  # fmt: skip
    add("--hp-filter", metavar="REGEX", help="fail if one of these layers is quantized")
    add("--full-precision-matrix-mult", action=argparse.BooleanOptionalAction, default=None,
        help="for all layers; by default what the marker says")  # fmt: skip
    add("--add-input-scales", action="store_true", default=None,
        help="input scales of 1.0 for layers that take one and have none")  # fmt: skip
    add("--format", metavar="ID", help="format of layers whose scales could mean several")
    add("--block-size", type=int, metavar="N", help="block size of such layers")
    add("--layers", metavar="REGEX", help="--format and --block-size are for these layers only")
    add("--marker", type=int, choices=(0, 1, 2), help="elements of the marker scaled_fp8")
    parser.set_defaults(run=_migrate)


def _migrate(args: argparse.Namespace) -> int:
    from ..converters.migrating import MigrateOptions, migrate_file

    settings = {
        name: value
        for name in MigrateOptions.model_fields
        if (value := getattr(args, name)) is not None
    }
    with Bar(silent=args.json) as bar:
        report = migrate_file(args.src, destination(args), MigrateOptions(**settings), progress=bar)
    return show(report, args)
