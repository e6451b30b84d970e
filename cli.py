"""The ``roundsmith`` command: every converter from the shell.

Exit status: 0 done, 1 failed (the message names the file, the tensor and the way out), 2 bad usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import RecipeError, RoundsmithError


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
        print("roundsmith: stopped; nothing was left under the destination's name", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="roundsmith", description="Quantize diffusion models.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    quantize = commands.add_parser("quantize", help="quantize a checkpoint into a new file")
    quantize.add_argument("src", type=Path, help=".safetensors file, index of shards, or folder")
    quantize.add_argument(
        "dst", type=Path, nargs="?", help="file to write; by default SRC with the format's name"
    )
    quantize.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    quantize.add_argument("--report", type=Path, metavar="FILE", help="save the report as JSON")
    quantize.add_argument("--table", action="store_true", help="print every layer")
    _add_recipe(quantize)
    quantize.set_defaults(run=_quantize)

    plan = commands.add_parser("plan", help="show what quantize would do; nothing is written")
    plan.add_argument("src", type=Path, help=".safetensors file, index of shards, or folder")
    _add_recipe(plan)
    plan.set_defaults(run=_plan)

    inspect = commands.add_parser("inspect", help="show what a checkpoint holds")
    inspect.add_argument("src", type=Path, help=".safetensors file, index of shards, or folder")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)

    _add_demo(commands)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """Flags named as the recipe's fields."""
    add = parser.add_argument_group("recipe").add_argument
    add("--recipe", type=Path, metavar="FILE", help="JSON recipe; the flags below override it")
    add("--format", metavar="ID", help="storage format (roundsmith quantize --list-formats)")
    add("--scaling", choices=("tensor", "row"), help="one scale a tensor or a row")
    add("--group-size", type=int, metavar="N", help="block size, where the format has one")
    add("--convrot", metavar="G", help="ConvRot group size (4 ... 1024), or auto")
    add("--rounding", choices=("auto", "nearest"), help="how codes are chosen")
    add("--scale-search", action="store_true", default=None, help="search each scale")
    add("--preset", action="append", metavar="NAME", help="auto, none, or a name; repeatable")
    add("--exclude", action="append", metavar="REGEX", help="keep these layers; repeatable")
    add("--fallback", metavar="ID", help="format for layers that exclude or preset would keep")
    add("--full-precision-matrix-mult", action="store_true", default=None,
        help="decode and multiply in the compute dtype")  # fmt: skip
    add("--heuristics", action="store_true", default=None, help="keep layers that gain little")
    add("--seed", type=int, metavar="N", help="seed of everything random")
    add("--device", help="auto, cpu, cuda, cuda:1, ...")
    add("--json", action="store_true", help="print JSON for machines; no progress bar")
    add("--list-formats", action=_ListFormats, nargs=0, help="print the formats and leave")


class _ListFormats(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .layouts import formats

        for fmt in formats().values():
            loader = "stock ComfyUI" if fmt.stock else "Roundsmith's loader"
            print(f"{fmt.id:26} {fmt.title}; loads with {loader}")
        parser.exit()


def _recipe(args: argparse.Namespace) -> Any:
    from .converters import Recipe

    settings: dict[str, Any] = {}
    if args.recipe is not None:
        settings = Recipe.load(args.recipe).model_dump(exclude_unset=True)
    for name in Recipe.model_fields:
        value = getattr(args, name, None)
        if value is not None:
            settings[name] = value
    if args.convrot is not None and args.convrot != "auto":
        if not args.convrot.isdigit():
            raise RecipeError(f"--convrot {args.convrot!r}: give a group size or auto")
        settings["convrot"] = int(args.convrot)
    if args.preset is not None:
        settings["preset"] = None if args.preset == ["none"] else tuple(args.preset)
    if args.fallback is not None:
        settings["fallback"] = {"format": args.fallback}
    return Recipe(**settings)


def _quantize(args: argparse.Namespace) -> int:
    from .converters import quantize_file

    recipe = _recipe(args)
    if args.report is not None and not args.report.resolve().parent.is_dir():
        raise RecipeError(f"--report {args.report}: there is no folder {args.report.parent}")
    src = args.src.resolve()
    stem = src.name.removesuffix(".index.json").removesuffix(".safetensors")
    dst = args.dst or src.with_name(f"{stem}-{recipe.format}.safetensors")
    with _Bar(silent=args.json) as bar:
        report = quantize_file(args.src, dst, recipe, progress=bar, overwrite=args.overwrite)
    if args.report is not None:
        try:
            args.report.write_text(report.json(), encoding="utf-8")
        except OSError as error:
            print(f"roundsmith: cannot write {args.report}: {error.strerror}", file=sys.stderr)
    if args.json:
        print(report.json())
    elif args.table:
        print(report.table())
    else:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{dst}: {report.summary()} ({report.seconds:.1f} s)")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from .converters import plan_file
    from .converters.plan import plan_json
    from .converters.report import human_bytes, make_report

    recipe = _recipe(args)
    plan = plan_file(args.src, recipe)
    if args.json:
        print(plan_json(plan))
    else:
        print(make_report(plan, {}, (), 0.0, recipe.to_json()).table())
        print(f"the file would take {plan.size:,} bytes ({human_bytes(plan.size)})")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from .converters.inspection import inspect_file

    found = inspect_file(args.src)
    print(found.json() if args.json else found.table())
    return 0


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="quantize the trained demo model to every format")
    demo.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for results")
    demo.add_argument("--install", type=Path, metavar="COMFYUI",
                      help="put the demo's files into a ComfyUI's model folders")  # fmt: skip
    demo.add_argument("--comfyui", metavar="URL|FOLDER", nargs="?", const="",
                      help="run it through a ComfyUI server")  # fmt: skip
    demo.add_argument("--formats", nargs="*", metavar="ID", help="only these formats")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from .converters.demo import main as demo

    return demo(args)


class _Bar:
    """A tqdm bar over source bytes that names the layer; nothing on a run under a second."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self.bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, progress: Any) -> None:
        if self.silent:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(
                total=progress.bytes_total, unit="B", unit_scale=True, delay=1, leave=False
            )
        self.bar.set_postfix_str(progress.layer, refresh=False)
        self.bar.update(progress.bytes_done - self.bar.n)
