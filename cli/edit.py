"""``roundsmith edit``: what a checkpoint says of its quantized layers."""

from __future__ import annotations

import argparse
from typing import Any

from ._bar import Bar
from ._tool import add_tool, destination, merged, show


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "edit", help="edit the settings of quantized layers; codes are copied as they are"
    )
    add_tool(parser, "-edited")
    add = parser.add_argument
    form = "as KEY=VALUE, JSON, or \"'key': value\"; repeatable"
    add("--layers", metavar="REGEX", help="only these layers")
    add("--set", action="append", metavar="SETTINGS", help=f"write in every layer; {form}")
    add("--add", action="append", metavar="SETTINGS", help="write where a layer lacks the key")
    add("--update", action="append", metavar="SETTINGS", help="write where a layer has the key")
    add("--remove", action="append", metavar="KEYS", help="take keys out; repeatable")
    add("--header", action=argparse.BooleanOptionalAction, default=True,
        help="write the header too where the file has none (default)")  # fmt: skip
    add("--normalise-scalars", action=argparse.BooleanOptionalAction, default=True,
        help="store scales in the shapes ComfyUI expects (default)")  # fmt: skip
    parser.set_defaults(run=_edit)


def _edit(args: argparse.Namespace) -> int:
    from ..converters.editing import EditOptions, edit_file, parse_keys, parse_settings

    given = {
        name: merged(getattr(args, name), parse_settings, f"--{name}")
        for name in ("set", "add", "update")
    }
    options = EditOptions(
        layers=args.layers,
        **given,
        remove=parse_keys(" ".join(args.remove or ())),
        header=args.header,
        normalise_scalars=args.normalise_scalars,
    )
    with Bar(silent=args.json) as bar:
        report = edit_file(args.src, destination(args), options, progress=bar)
    return show(report, args)
