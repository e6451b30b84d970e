"""The flags and the output that file tools share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..converters.patching import ChangeReport, Destination


def add_tool(parser: argparse.ArgumentParser, suffix: str) -> None:
    """``SRC [DST]``, where the result goes, and how the report looks."""
    parser.add_argument("src", type=Path, help=".safetensors file, index of shards, or folder")
    parser.add_argument(
        "dst", type=Path, nargs="?", help=f"by default SRC{suffix}.safetensors, beside it"
    )
    add = parser.add_argument
    add("--in-place", action="store_true", help="replace SRC itself, once the result is complete")
    add("--overwrite", action="store_true", help="replace an existing DST")
    add("--dry-run", action="store_true", help="show what would change; write nothing")
    add("--table", action="store_true", help="print every change (a dry run does)")
    add("--json", action="store_true", help="print JSON for machines; no progress bar")
    parser.set_defaults(suffix=suffix)


def destination(args: argparse.Namespace) -> Destination:
    """Where the flags say that the result goes."""
    from ..converters.patching import Destination

    dst = args.dst
    if dst is None and not args.in_place:
        dst = beside(args.src, f"{args.suffix}.safetensors")
    return Destination(dst, args.overwrite, args.in_place, args.dry_run)


def beside(src: Path, ending: str) -> Path:
    """``src`` with ``ending`` for its own."""
    src = src.resolve()
    stem = src.name.removesuffix(".index.json").removesuffix(".safetensors").removesuffix(".sft")
    return src.with_name(f"{stem}{ending}")


def show(report: ChangeReport, args: argparse.Namespace) -> int:
    """Print the report as the flags ask."""
    if args.json:
        print(report.json())
    elif args.table or args.dry_run:
        print(report.table())
    else:
        for note in report.notes:
            print(f"note: {note}", file=sys.stderr)
        print(report.summary())
    return 0


def merged(texts: list[str] | None, parse: Any, flag: str) -> dict[str, Any]:
    """The settings of a repeated flag together. Raises RecipeError for a key given twice."""
    from ..errors import RecipeError

    found: dict[str, Any] = {}
    for text in texts or ():
        for key, value in parse(text, flag).items():
            if key in found:
                raise RecipeError(f"{flag}: {key!r} is given twice: remove one")
            found[key] = value
    return found
