"""The input that chooses a format, with the options only it has, in all its uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from comfy_api.latest import io

from ..converters.options import AUTO, Goal, Rounding
from ..layouts import Format, formats
from ..layouts.transforms import GROUP_SIZES

KEEP = "keep in high precision"
AS_RECIPE = "as the recipe"
FIRST = ("int8_tensorwise", "float8_e4m3fn", "mxfp8", "nvfp4")
"""Formats offered first, the recommended one at the top; the others follow."""


def format_input() -> io.DynamicCombo.Input:
    """The format, with the options only it has."""
    known = formats()
    names = [*FIRST, *(name for name in known if name not in FIRST)]
    listing = "\n".join(f"{name}: {_describe(known[name])}" for name in names)
    return io.DynamicCombo.Input(
        "format",
        options=[
            *(io.DynamicCombo.Option(name, _options(known[name])) for name in names[:1]),
            io.DynamicCombo.Option(AUTO, [_goal_input()]),
            *(io.DynamicCombo.Option(name, _options(known[name])) for name in names[1:]),
        ],
        tooltip="How the weights are stored. Keep the first if unsure, or let auto choose for this "
        f"device.\n{listing}",
    )


def _goal_input() -> io.Input:
    return io.Combo.Input(
        "goal",
        options=list(get_args(Goal)),
        default="balance",
        tooltip="What to choose the format for, on this device. quality: the most exact that fits "
        "its memory. balance: the most exact that it multiplies without decoding. smallest: the "
        "smallest that still gives a good picture. fastest: 4-bit products where it has them. The "
        "report shows the choice, its reason and the alternatives.",
    )


def rule_inputs() -> list[io.Input]:
    """What a rule says of its layers: a format with its options, or nothing of the kind."""
    known = formats()
    names = [*FIRST, *(name for name in known if name not in FIRST)]
    return [
        io.DynamicCombo.Input(
            "format",
            options=[
                io.DynamicCombo.Option(KEEP, []),
                *(io.DynamicCombo.Option(name, _options(known[name])) for name in names),
            ],
            tooltip="How these layers are stored, or that they are not quantized.",
        ),
        io.Combo.Input(
            "rounding",
            options=[AS_RECIPE, *get_args(Rounding)],
            default=AS_RECIPE,
            advanced=True,
            tooltip="How the codes of these layers are chosen.",
        ),
        _switch("scale_search", AS_RECIPE, "Search the scales of these layers."),
        _switch(
            "full_precision_matmul",
            AS_RECIPE,
            "Decode the weights of these layers before each product: for the few that suffer most "
            "when their inputs are quantized.",
        ),
    ]


def fallback_input() -> io.DynamicCombo.Input:
    """The format for layers that would be kept."""
    known = formats()
    names = [*FIRST, *(name for name in known if name not in FIRST)]
    return io.DynamicCombo.Input(
        "fallback",
        options=[
            io.DynamicCombo.Option(KEEP, []),
            *(io.DynamicCombo.Option(name, _options(known[name])) for name in names),
        ],
        tooltip="What becomes of layers that the preset or exclude would keep: a format, usually a "
        "more exact one, makes the file smaller still.",
    )


def _switch(name: str, default: str, tooltip: str) -> io.Input:
    return io.Combo.Input(
        name, options=[default, "on", "off"], default=default, advanced=True, tooltip=tooltip
    )


def _describe(fmt: Format) -> str:
    where = "any ComfyUI loads it" if fmt.stock else "needs Roundsmith to load"
    where += f" ({fmt.stock_note})" if fmt.stock_note else ""
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
    if fmt.variants:
        inputs.append(
            io.Combo.Input(
                "variant",
                options=list(fmt.variants),
                default=fmt.variants[0],
                tooltip="Bits of weights and activations: w6a8 has 6-bit weights, and the runtime "
                "rounds activations to 8 bits. More are more exact.",
            )
        )
    if fmt.forms:
        inputs.append(
            io.Combo.Input(
                "form",
                options=list(fmt.forms),
                default=fmt.forms[0],
                advanced=True,
                tooltip="How the file says it: which other tools read it. The values are the same.",
            )
        )
    if fmt.rotates:
        sizes = [str(g) for g in reversed(GROUP_SIZES)]
        inputs.append(
            io.Combo.Input(
                "convrot",
                options=["auto", *sizes] if fmt.always_rotates else ["auto", "none", *sizes],
                default="auto",
                tooltip="Rotate groups of inputs before rounding, which makes integers more exact; "
                "the runtime rotates activations alike. auto: the largest group that fits each "
                "layer, at most 256 where the format is always rotated. With a choice of scaling "
                "it needs 'row'.",
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


def format_options(format: Mapping[str, Any]) -> dict[str, Any]:
    """A format choice's settings, by the names of a recipe's fields."""
    scaling = format.get("scaling")
    convrot = format.get("convrot", "none")
    if convrot == "none" or (convrot == "auto" and scaling == "tensor"):
        convrot = None
    group_size = format.get("group_size")
    return {
        "format": format["format"],
        "scaling": scaling,
        "convrot": int(convrot) if convrot not in (None, "auto") else convrot,
        "group_size": int(group_size) if group_size else None,
        "variant": format.get("variant"),
        "form": format.get("form"),
    }
