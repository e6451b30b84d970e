"""The flags that make a recipe, named as its fields."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError

if TYPE_CHECKING:
    from ..converters import Recipe


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Flags named as the recipe's fields."""
    add = parser.add_argument_group("recipe").add_argument
    add(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="JSON recipe, or a file that was made with one; the flags below override it",
    )
    add(
        "--format",
        metavar="ID",
        help="storage format (roundsmith quantize --list-formats), or auto: chosen for --goal",
    )
    add(
        "--goal",
        choices=("quality", "balance", "smallest", "fastest"),
        help="what --format auto is to reach (balance)",
    )
    add("--scaling", choices=("tensor", "row"), help="one scale a tensor or a row")
    add("--group-size", type=int, metavar="N", help="block size, where the format has one")
    add("--convrot", metavar="G", help="ConvRot group size (4 ... 1024), or auto")
    add("--variant", metavar="NAME", help="variant, where the format has some (w4a8, w6a8, ...)")
    add(
        "--form",
        metavar="NAME",
        help="how the file says it, where the format has several forms (comfy_quant, bitsandbytes)",
    )
    add("--rounding", choices=("auto", "nearest", "calibrated", "learned"),
        help="how codes are chosen; auto: the best that the statistics support")  # fmt: skip
    add("--scale-search", action=argparse.BooleanOptionalAction, default=None,
        help="search each scale; by default where that pays")  # fmt: skip
    add("--calibrated", action="append", metavar="KEY=VALUE",
        help="setting of rounding calibrated or auto; repeatable")  # fmt: skip
    add("--learned", action="append", metavar="KEY=VALUE",
        help="setting of rounding learned; repeatable")  # fmt: skip
    add("--bias-correction", action=argparse.BooleanOptionalAction, default=None,
        help="correct biases for the measured mean error (default)")  # fmt: skip
    add("--input-scale", choices=("auto", "none", "constant", "weight", "calibrated", "imported"),
        help="fixed scale of FP8 inputs; auto: from statistics")  # fmt: skip
    add("--input-scale-percentile", type=float, metavar="P", help="of the inputs' magnitudes")
    add("--input-scales", metavar="FILE", help="JSON or safetensors file to import them from")
    add("--preset", action="append", metavar="NAME", help="auto, none, or a name; repeatable")
    add("--presets", type=Path, metavar="FILE",
        help="presets of your own, JSON; by default those of your presets file")  # fmt: skip
    add("--exclude", action="append", metavar="REGEX", help="keep these layers; repeatable")
    add("--layer-config", type=Path, metavar="FILE", help="JSON: patterns and their settings")
    add(
        "--layer-config-match",
        choices=("search", "full"),
        help="whether its patterns are searched in a layer's name (default), or are all of it",
    )
    add("--fallback", metavar="ID", help="format for layers that exclude or preset would keep")
    add("--full-precision-matrix-mult", action=argparse.BooleanOptionalAction, default=None,
        help="decode and multiply in the compute dtype; by default where it is free")  # fmt: skip
    add("--output", choices=("comfy_quant", "fp8_scaled"),
        help="how the file says what its layers are; fp8_scaled: the older layout")  # fmt: skip
    add("--keep-1d-scales", action="store_true", default=None,
        help="store a tensor's one scale as [1], as older tools do")  # fmt: skip
    add("--heuristics", action="store_true", default=None, help="keep layers that gain little")
    add("--seed", type=int, metavar="N", help="seed of everything random")
    add("--device", help="auto, cpu, cuda, cuda:1, ...")
    add("--json", action="store_true", help="print JSON for machines; no progress bar")
    add("--list-formats", action=_ListFormats, nargs=0, help="print the formats and leave")
    add("--list-presets", action=_ListPresets, nargs=0, help="print the presets and leave")


class _ListFormats(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ..layouts import formats

        for fmt in formats().values():
            loader = "stock ComfyUI" if fmt.stock else "Roundsmith's loader"
            loader += f"; {fmt.stock_note}" if fmt.stock_note else ""
            variants = f" ({', '.join(fmt.variants)})" if fmt.variants else ""
            print(f"{fmt.id:26} {fmt.title}{variants}; loads with {loader}")
        parser.exit()


class _ListPresets(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, *_: Any) -> None:
        from ..converters.preset_files import load_presets, own_presets, user_presets_file

        given = namespace.presets
        try:
            own = {preset.name for preset in own_presets(given)}
            for preset in load_presets(given).values():
                whose = " (yours)" if preset.name in own else ""
                print(f"{preset.name:24} {preset.category}; {preset.help}{whose}")
        except RecipeError as error:
            parser.error(str(error))
        print(f"presets of your own: {given or user_presets_file()}")
        parser.exit()


def make_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe of the flags; warns of those that change nothing. Raises RecipeError."""
    from ..converters import Recipe
    from ..converters.layer_config import load_layer_config
    from ..converters.preset_files import own_presets

    settings: dict[str, Any] = {}
    if args.recipe is not None:
        settings = Recipe.load(args.recipe).model_dump(exclude_unset=True)
    for name in Recipe.model_fields:
        value = getattr(args, name, None)
        if value is not None:
            settings[name] = value
    if args.presets is not None:
        settings["presets"] = own_presets(args.presets)
    if args.layer_config is not None:
        settings["layer_config"] = load_layer_config(args.layer_config)
    for name in ("calibrated", "learned"):
        if getattr(args, name) is not None:
            settings[name] = _pairs(f"--{name}", getattr(args, name))
    if args.convrot is not None and args.convrot != "auto":
        try:
            settings["convrot"] = int(args.convrot)
        except ValueError as error:
            raise RecipeError(f"--convrot {args.convrot!r}: give a group size or auto") from error
    if args.preset is not None:
        settings["preset"] = None if args.preset == ["none"] else tuple(args.preset)
    if args.fallback is not None:
        settings["fallback"] = {"format": args.fallback}
    recipe = Recipe(**settings)
    _warn_of_unused(args, recipe)
    return recipe


def recipe_files(args: argparse.Namespace, recipe: Recipe) -> dict[str, Path | str | None]:
    """The files a recipe is made of, by their flags."""
    return {
        "--recipe": args.recipe,
        "--presets": args.presets,
        "--layer-config": args.layer_config,
        "--input-scales": recipe.input_scales,
    }


def _warn_of_unused(args: argparse.Namespace, recipe: Recipe) -> None:
    """Say on stderr which settings of a rounding method no layer is rounded by."""
    parts = (recipe, *recipe.rules, *recipe.layer_config.values(), recipe.fallback)
    ways = {part.rounding for part in parts if part is not None}
    for name, counts in (("calibrated", {"calibrated", "auto"}), ("learned", {"learned"})):
        if getattr(args, name) is not None and not ways & counts:
            print(
                f"warning: --{name} {' '.join(getattr(args, name))} changes nothing, no layer is "
                f"rounded so: give --rounding {name}, or leave it out",
                file=sys.stderr,
            )


def _pairs(flag: str, words: list[str]) -> dict[str, Any]:
    """``["passes=2"]`` → ``{"passes": 2}``; values are JSON, or else text."""
    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise RecipeError(f"{flag} {word!r}: give KEY=VALUE")
        try:
            found[key.replace("-", "_")] = json.loads(value)
        except ValueError:
            found[key.replace("-", "_")] = value
    return found
