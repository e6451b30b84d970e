"""The inputs that make a recipe besides its format, shared by the nodes that quantize."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from comfy_api.latest import io

from ..bridge.presets import preset_names
from ..converters import Recipe, Rule
from ..converters.layer_config import DEFAULT
from ..converters.rounding import CalibratedOptions, LearnedOptions
from ..converters.rule_text import parse_rules
from ..converters.strict import Strict
from ..errors import RecipeError
from ._format import AS_RECIPE, KEEP, format_options
from ._types import Recipe as RecipeType

_SWITCH = {"on": True, "off": False}

_INSTEAD = (
    "Settings from Quantization Recipe, Fit to Budget or Load Recipe; where connected, those of "
    "this node do not count."
)


def recipe_input(tooltip: str = _INSTEAD) -> io.Input:
    """A recipe; by default one that stands for the node's own settings."""
    return RecipeType.Input("recipe", optional=True, tooltip=tooltip)


def rounding_input() -> io.DynamicCombo.Input:
    """How codes are chosen, with the settings only that method has."""
    return io.DynamicCombo.Input(
        "rounding",
        options=[
            io.DynamicCombo.Option("auto", []),
            io.DynamicCombo.Option("nearest", []),
            io.DynamicCombo.Option("calibrated", [_more(CalibratedOptions)]),
            io.DynamicCombo.Option("learned", [*_learned_inputs(), _more(LearnedOptions)]),
        ],
        tooltip="How codes are chosen. Keep auto if unsure.\n"
        "auto: the best that is possible. With a calibration connected, or on a loaded model, "
        "rounding follows what each layer really sees; elsewhere nearest, scales searched where "
        "that pays.\n"
        "nearest: each weight by itself; fastest.\n"
        "calibrated: as auto with statistics, with its settings.\n"
        "learned: gradient descent; slower, and no better than calibrated.",
    )


def _learned_inputs() -> list[io.Input]:
    fields = LearnedOptions.model_fields
    return [
        io.Combo.Input(
            name,
            options=list(get_args(fields[name].annotation)),
            default=fields[name].default,
            tooltip=fields[name].description,
        )
        for name in ("objective", "optimizer", "schedule")
    ]


def _more(options: type[Strict]) -> io.Input:
    shown = ("objective", "optimizer", "schedule")
    listing = "\n".join(
        f"{name} = {field.default}: {field.description}"
        for name, field in options.model_fields.items()
        if name not in shown
    )
    return io.String.Input(
        "settings",
        default="",
        multiline=True,
        tooltip=f"Other settings, one NAME = VALUE a line; empty keeps the defaults:\n{listing}",
    )


def recipe_inputs() -> list[io.Input]:
    """Everything of a recipe but the format; nothing here needs touching."""
    return [
        rounding_input(),
        io.Combo.Input(
            "preset",
            options=["auto", "none", *preset_names()],
            default="auto",
            advanced=True,
            tooltip="Which layers stay in high precision. auto recognises the model's family; none "
            "quantizes every linear layer. Presets of your own, from roundsmith/presets.json in "
            "ComfyUI's user folder, are listed too.",
        ),
        io.Combo.Input(
            "scale_search",
            options=["auto", "on", "off"],
            default="auto",
            advanced=True,
            tooltip="Try several scales for each block and keep the best. auto: where that is "
            "known to help. Without a calibration it costs int8_tensorwise with scaling 'tensor' "
            "and int8_blockwise 1.2 and 1.5 dB of the outputs.",
        ),
        io.Combo.Input(
            "full_precision_matmul",
            options=["auto", "on", "off"],
            default="auto",
            advanced=True,
            tooltip="Decode the weights before each product instead of quantizing activations. "
            "More exact, not faster. auto: only in layers that see a token or so a call, where "
            "it costs next to nothing (needs statistics).",
        ),
        io.Boolean.Input(
            "heuristics",
            default=False,
            advanced=True,
            tooltip="Also keep layers that gain little: tiny ones and very long, thin ones.",
        ),
        io.Boolean.Input(
            "bias_correction",
            default=True,
            advanced=True,
            tooltip="Correct each layer's bias for the mean error that was measured, where that "
            "helps. Needs statistics.",
        ),
        io.Combo.Input(
            "input_scale",
            options=["auto", "none", "constant", "weight", "calibrated"],
            default="auto",
            advanced=True,
            tooltip="Fixed scale of the layers' inputs, for float8_e4m3fn and float8_e5m2 on GPUs "
            "that multiply FP8. auto and calibrated: from the range that was measured, where one "
            "was. constant: 1. weight: the weight's own scale, as some old text encoders have it.",
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


def output_inputs() -> list[io.Input]:
    """How a file says what its layers are; the last widgets of nodes that write or plan one.

    Optional: workflows of before do not have them.
    """
    return [
        io.Combo.Input(
            "output",
            options=["comfy_quant", "fp8_scaled"],
            default="comfy_quant",
            optional=True,
            advanced=True,
            tooltip="How the file says what its layers are. comfy_quant is what ComfyUI and "
            "Roundsmith read. fp8_scaled is the older layout, for tools that know no other: FP8 "
            "formats only.",
        ),
        io.Boolean.Input(
            "keep_1d_scales",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Store a tensor's one scale as a list of one number, as some older tools do "
            "and expect. The values are the same.",
        ),
    ]


def make_recipe(
    format: Mapping[str, Any],
    rounding: Mapping[str, Any] | None = None,
    preset: str = "auto",
    scale_search: str = "auto",
    full_precision_matmul: str = "auto",
    heuristics: bool = False,
    bias_correction: bool = True,
    input_scale: str = "auto",
    exclude: str = "",
    rules: tuple[Rule, ...] = (),
    fallback: Mapping[str, Any] | None = None,
    layer_config: str = "",
    layer_config_match: str = "search",
    layer_rules: str = "",
    output: str = "comfy_quant",
    keep_1d_scales: bool = False,
    more_presets: str = "",
    recipe: Recipe | None = None,
) -> Recipe:
    """The recipe for what the inputs say; ``recipe`` itself where one is connected.

    Raises :class:`~roundsmith.errors.RecipeError`.
    """
    if recipe is not None:
        return recipe
    method = dict(rounding or {"rounding": "auto"})
    kind = method.pop("rounding")
    text = method.pop("settings", "")
    settings = {**method, **_settings(text)}
    goal = {"goal": format["goal"]} if "goal" in format else {}
    return Recipe(
        **goal,
        rounding=kind,
        **({kind: settings} if settings else {}),
        **format_options(format),
        preset=_presets(preset, more_presets),
        scale_search=_SWITCH.get(scale_search),
        full_precision_matrix_mult=_SWITCH.get(full_precision_matmul),
        heuristics=heuristics,
        bias_correction=bias_correction,
        input_scale=input_scale,
        exclude=tuple(line.strip() for line in exclude.splitlines() if line.strip()),
        rules=(*parse_rules(layer_rules), *rules),
        fallback=_fallback(fallback),
        layer_config=_json_object("layer_config", layer_config),
        layer_config_match=layer_config_match,
        output=output,
        keep_1d_scales=keep_1d_scales,
    )


def make_rule(match: str, format: Mapping[str, Any], rounding: str, **switches: str) -> Rule:
    """The rule for what Layer Rule's inputs say. Raises :class:`~roundsmith.errors.RecipeError`."""
    if not match.strip():
        raise RecipeError("Layer Rule: match is empty; give a pattern, for example attn")
    if format["format"] == KEEP:
        return Rule(match=match.strip(), skip=True)
    return Rule(
        match=match.strip(),
        rounding=None if rounding == AS_RECIPE else rounding,
        full_precision_matrix_mult=_SWITCH.get(switches["full_precision_matmul"]),
        scale_search=_SWITCH.get(switches["scale_search"]),
        **format_options(format),
    )


def _presets(preset: str, more: str) -> str | tuple[str, ...] | None:
    others = more.split()
    if not others:
        return None if preset == "none" else preset
    return (*(() if preset == "none" else (preset,)), *others)


def _fallback(format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if format is None or format["fallback"] == KEEP:
        return None
    return format_options({**format, "format": format["fallback"]})


def _json_object(name: str, text: str) -> dict[str, Any]:
    """The JSON object of a text input; empty for an empty one."""
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{name}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{name}: a JSON object is wanted, not a {type(found).__name__}")
    return {k: v for k, v in found.items() if k == DEFAULT or not k.startswith("_")}


def _settings(text: str) -> dict[str, Any]:
    """``NAME = VALUE`` lines; values are JSON, or else text."""
    found: dict[str, Any] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, sign, value = (part.strip() for part in line.partition("="))
        if not sign:
            raise RecipeError(f"rounding settings: {line!r} is not NAME = VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
