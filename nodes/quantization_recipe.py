"""Quantization Recipe."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ._format import fallback_input, format_input
from ._recipe import make_recipe, output_inputs, recipe_inputs
from ._result import with_json
from ._types import Recipe, Rules


class QuantizationRecipe(io.ComfyNode):
    """All settings of a conversion as one connection."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithQuantizationRecipe",
            display_name="Quantization Recipe",
            category="Roundsmith/plan",
            description="Holds every setting of a conversion, rules for single layers among them. "
            "Connect it to Plan Quantization and to the Quantize nodes: what is planned is then "
            "what is made.",
            search_aliases=["quantization settings", "quantization config", "layer config"],
            inputs=[
                format_input(),
                *recipe_inputs(),
                Rules.Input(
                    "rules", optional=True, tooltip="Settings for single layers, from Layer Rule."
                ),
                fallback_input(),
                io.String.Input(
                    "layer_config",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="A layer config, as JSON: an object of patterns and their settings, of "
                    "which the most specific decides. convert-to-quant's files work here.",
                ),
                io.Combo.Input(
                    "layer_config_match",
                    options=["search", "full"],
                    default="search",
                    advanced=True,
                    tooltip="Whether the layer config's patterns are searched in a layer's name, "
                    "or have to be all of it.",
                ),
                *output_inputs(),
                io.String.Input(
                    "more_presets",
                    default="",
                    optional=True,
                    multiline=True,
                    advanced=True,
                    tooltip="Presets beside the one above, one a line: what any of them keeps in "
                    "high precision is kept.",
                ),
                io.String.Input(
                    "layer_rules",
                    default="",
                    optional=True,
                    multiline=True,
                    advanced=True,
                    tooltip="Rules for single layers, one a line; the first that matches a layer "
                    "decides, before the rules connected. Pick layers… writes them. For example:\n"
                    "keep: ^final_layer\\.\nnvfp4: mlp\nint8_tensorwise convrot=auto: attn",
                ),
            ],
            outputs=[
                Recipe.Output("recipe", tooltip="The settings."),
                io.String.Output("json", tooltip="The settings as JSON, for a file or the shell."),
            ],
        )

    @classmethod
    def execute(cls, format: dict[str, Any], rules: Any = (), **options: Any) -> io.NodeOutput:
        return with_json(make_recipe(format, rules=rules or (), **options))
