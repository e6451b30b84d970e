"""The inputs that make a recipe, shared by the nodes that quantize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..converters import Recipe
from ..converters.presets import load_presets
from ..layouts import Format, formats
from ..layouts.transforms import GROUP_SIZES

FIRST = ("int8_tensorwise", "float8_e4m3fn", "mxfp8", "nvfp4")
"""Formats offered first, the recommended one at the top; the others follow."""


def format_input() -> io.DynamicCombo.Input:
    """The format, with the options only it has."""
    known = formats()
    names = [*FIRST, *(name for name in known if name not in FIRST)]
    listing = "\n".join(f"{name}: {_describe(known[name])}" for name in names)
    return io.DynamicCombo.Input(
        "format",
        options=[io.DynamicCombo.Option(name, _options(known[name])) for name in names],
        tooltip=f"How the weights are stored. Keep the first if unsure.\n{listing}",
    )


def _describe(fmt: Format) -> str:
    where = "any ComfyUI loads it" if fmt.stock else "needs Roundsmith to load"
    return f"{fmt.title}; {where}. Fast on: {fmt.hardware}."


def _options(fmt: Format) -> list[io.Input]:
    inputs: list[io.Input] = []
    if fmt.scalings:
        inputs.append(
            io.Combo.Input(
                "scaling",
                options=list(fmt.scalings),
                default=fmt.scalings[0],
                tooltip="One scale for each row (more exact) or one for the whole tensor.",
            )
        )
    if fmt.rotates:
        inputs.append(
            io.Combo.Input(
                "convrot",
                options=["auto", "none", *(str(g) for g in reversed(GROUP_SIZES))],
                default="auto",
                tooltip="Rotate groups of inputs before rounding, which makes INT8 more exact; the "
                "runtime rotates activations alike. auto: the largest group that fits each layer. "
                "It needs scaling 'row'.",
            )
        )
    if fmt.group_sizes:
        inputs.append(
            io.Combo.Input(
                "group_size",
                options=[str(size) for size in fmt.group_sizes],
                default=str(fmt.group_sizes[0]),
                tooltip="Weights on a side of the block that shares a scale. Smaller is more exact "
                "and a little larger on disk.",
            )
        )
    return inputs


def recipe_inputs() -> list[io.Input]:
    """Everything of a recipe but the format; nothing here needs touching."""
    return [
        io.Combo.Input(
            "preset",
            options=["auto", "none", *load_presets()],
            default="auto",
            advanced=True,
            tooltip="Which layers stay in high precision. auto recognises the model's family; none "
            "quantizes every linear layer.",
        ),
        io.Boolean.Input(
            "scale_search",
            default=False,
            advanced=True,
            tooltip="Try several scales for each block and keep the best. Slower. The model's "
            "outputs gain up to 0.9 dB, most in float8_e4m3fn_block3d and nvfp4. Leave it off for "
            "int8_tensorwise with scaling 'tensor' and for int8_blockwise: they lose 1.2 and "
            "1.5 dB.",
        ),
        io.Boolean.Input(
            "full_precision_matmul",
            default=False,
            advanced=True,
            tooltip="Decode the weights before each product instead of quantizing activations. "
            "More exact, not faster.",
        ),
        io.Boolean.Input(
            "heuristics",
            default=False,
            advanced=True,
            tooltip="Also keep layers that gain little: tiny ones and very long, thin ones.",
        ),
        io.String.Input(
            "exclude",
            default="",
            multiline=True,
            advanced=True,
            tooltip="Layers to keep in high precision: regular expressions searched in the layer's "
            "name, one a line.",
        ),
    ]


def make_recipe(
    format: Mapping[str, Any],
    preset: str = "auto",
    scale_search: bool = False,
    full_precision_matmul: bool = False,
    heuristics: bool = False,
    exclude: str = "",
) -> Recipe:
    """The recipe for what the inputs say. Raises :class:`~roundsmith.errors.RecipeError`."""
    scaling = format.get("scaling")
    convrot = format.get("convrot", "none")
    if convrot == "none" or (convrot == "auto" and scaling == "tensor"):
        convrot = None
    group_size = format.get("group_size")
    return Recipe(
        format=format["format"],
        scaling=scaling,
        convrot=int(convrot) if convrot not in (None, "auto") else convrot,
        group_size=int(group_size) if group_size else None,
        preset=None if preset == "none" else preset,
        scale_search=scale_search,
        full_precision_matrix_mult=full_precision_matmul,
        heuristics=heuristics,
        exclude=tuple(line.strip() for line in exclude.splitlines() if line.strip()),
    )
