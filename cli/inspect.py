"""``roundsmith inspect``: what a checkpoint holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("inspect", help="show what a checkpoint holds")
    parser.add_argument("src", type=Path, help=".safetensors file, index of shards, or folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    from ..converters.inspection import inspect_file

    found = inspect_file(args.src)
    print(found.json() if args.json else found.table())
    return 0
