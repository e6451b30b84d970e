"""Save Quantized Checkpoint."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge import saving
from ..bridge.naming import model_prefix
from ..bridge.paths import next_output_path
from ._result import saved


class SaveCheckpoint(io.ComfyNode):
    """A MODEL with its CLIP and VAE to one file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithSaveCheckpoint",
            display_name="Save Quantized Checkpoint",
            category="Roundsmith/save",
            description="Writes diffusion model, text encoders and VAE to one file in ComfyUI's "
            "output folder, quantized layers as the codes they are.",
            search_aliases=["export checkpoint", "checkpoint save"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model; its LoRAs are baked in."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Text encoders to put into the file, if any."
                ),
                io.Vae.Input("vae", optional=True, tooltip="A VAE to put into the file, if any."),
                io.String.Input(
                    "filename_prefix",
                    default="checkpoints/roundsmith",
                    tooltip="Name of the file inside the output folder; a number is added. {name} "
                    "(of the model's file), {format}, {rounding} and {date} are filled in.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, model: Any, filename_prefix: str, clip: Any = None, vae: Any = None
    ) -> io.NodeOutput:
        path = next_output_path(model_prefix(filename_prefix, model))
        metadata = saving.workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        metadata.update(saving.recipe_metadata(model))
        size = saving.write(path, saving.checkpoint_tensors(model, clip, vae), metadata)
        return saved({path.name: size})
