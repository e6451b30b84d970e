"""``roundsmith demo``: every format on the trained demo model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import RecipeError


def add(commands: Any) -> None:
    """Add the subcommand."""
    demo = commands.add_parser("demo", help="quantize the trained demo model to every format")
    demo.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for results")
    demo.add_argument("--install", type=Path, metavar="COMFYUI",
                      help="put the demo's files into a ComfyUI's model folders")  # fmt: skip
    demo.add_argument("--comfyui", metavar="URL|FOLDER", nargs="?", const="",
                      help="run it through a ComfyUI server")  # fmt: skip
    demo.add_argument("--formats", nargs="*", metavar="ID", help="only these formats")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from ..converters.demo import main as demo

    if args.output.exists() and not args.output.is_dir():
        raise RecipeError(f"--output {args.output}: that is a file: give a folder")
    return demo(args)
