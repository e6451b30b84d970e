"""Layer Rule."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ._format import rule_inputs
from ._recipe import make_rule
from ._types import Rules


class LayerRule(io.ComfyNode):
    """Settings for the layers whose name matches, after the rules that are connected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithLayerRule",
            display_name="Layer Rule",
            category="Roundsmith/plan",
            description="Gives some layers a format and settings of their own, or keeps them in "
            "high precision. Rules chain; the first that matches a layer decides. They go into "
            "Quantization Recipe.",
            search_aliases=["exclude layers", "per layer format", "mixed precision", "skip layers"],
            inputs=[
                io.String.Input(
                    "match",
                    default="",
                    tooltip="A regular expression, searched in the layer's name: attn finds every "
                    r"layer with attn in its name, ^double_blocks\.0\. the first double block. "
                    "Plan Quantization lists the names.",
                ),
                *rule_inputs(),
                Rules.Input(
                    "rules", optional=True, tooltip="Rules that are asked before this one."
                ),
            ],
            outputs=[Rules.Output("rules", tooltip="The rules connected, then this one.")],
        )

    @classmethod
    def execute(
        cls, match: str, format: dict[str, Any], rules: Any = (), **options: Any
    ) -> io.NodeOutput:
        return io.NodeOutput((*(rules or ()), make_rule(match, format, **options)))
