"""The ``roundsmith`` command: every converter from the shell.

Exit status: 0 done, 1 failed (the message names the file, the tensor and the way out), 2 bad usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError, RoundsmithError
from . import (
    budget,
    calibrate,
    compare,
    demo,
    edit,
    error_lora,
    hybrid,
    inspect,
    migrate,
    plan,
    quantize,
    scales,
)

COMMANDS = (
    *(quantize, plan, budget, inspect, compare),
    *(calibrate, scales, edit, migrate, hybrid, error_lora, demo),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except RecipeError as error:
        print(f"roundsmith: {error}", file=sys.stderr)
        return 2
    except RoundsmithError as error:
        print(f"roundsmith: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"roundsmith: {_stopped(args)}", file=sys.stderr)
        return 1
    return status


def _stopped(args: argparse.Namespace) -> str:
    """What is told after Ctrl-C: what there is of the work."""
    said = "stopped; nothing unfinished was left under the destination's name"
    folder: Path | None = getattr(args, "finished_layers", None)
    if folder is not None and folder.is_dir():
        said += (
            f". The layers finished so far are in {folder}: the same command goes on from there; "
            "delete the folder if you will not run it again"
        )
    return said


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="roundsmith", description="Quantize diffusion models.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser
