"""Save Quantized Model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge import saving
from ..bridge.naming import model_prefix
from ..bridge.paths import next_output_path
from ._result import saved


class SaveModel(io.ComfyNode):
    """A MODEL, quantized or not, to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithSaveModel",
            display_name="Save Quantized Model",
            category="Roundsmith/save",
            description="Writes a diffusion model to ComfyUI's output folder, quantized layers as "
            "the codes they are. Put the file into models/diffusion_models to load it.",
            search_aliases=["export model", "save unet", "model save", "save quantized"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to save; its LoRAs are baked in."),
                io.String.Input(
                    "filename_prefix",
                    default="diffusion_models/roundsmith",
                    tooltip="Name of the file inside the output folder; a number is added. {name} "
                    "(of the model's file), {format}, {rounding} and {date} are filled in.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, model: Any, filename_prefix: str) -> io.NodeOutput:
        path = next_output_path(model_prefix(filename_prefix, model))
        metadata = saving.workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        metadata.update(saving.recipe_metadata(model))
        size = saving.write(path, saving.model_tensors(model), metadata)
        return saved({path.name: size})
