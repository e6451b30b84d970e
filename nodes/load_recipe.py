"""Load Recipe."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.file_tools import version_of
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
    def fingerprint_inputs(cls, source: str, **_: object) -> str:
        return version_of(source)

    @classmethod
    def execute(cls, source: str) -> io.NodeOutput:
        made = Recipe.load(resolve_source(source))
        if made.input_scales is not None:  # a path on the machine where the file was made
            made = made.model_copy(update={"input_scales": None, "input_scale": "auto"})
        return with_json(made)
