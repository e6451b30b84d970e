"""Load Recipe."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.paths import list_sources, resolve_source
from ..converters import Recipe
from ._result import with_json
from ._types import Recipe as RecipeType


class LoadRecipe(io.ComfyNode):
    """The recipe a quantized file was made with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithLoadRecipe",
            display_name="Load Recipe",
            category="Roundsmith/plan",
            description="Reads the settings that a file of Roundsmith's was made with, to make "
            "another model in the same way.",
            search_aliases=["recipe from file", "how was it quantized"],
            inputs=[
                io.Combo.Input(
                    "source",
                    options=list_sources(),
                    tooltip="A file that Roundsmith quantized.",
                )
            ],
            outputs=[
                RecipeType.Output("recipe", tooltip="The settings."),
                io.String.Output("json", tooltip="The settings as JSON, for a file or the shell."),
            ],
        )

    @classmethod
    def execute(cls, source: str) -> io.NodeOutput:
        return with_json(Recipe.load(resolve_source(source)))
