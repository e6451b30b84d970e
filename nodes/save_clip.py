"""Save Quantized CLIP."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge import saving
from ..bridge.naming import model_prefix
from ..bridge.paths import next_output_path
from ._result import saved


class SaveCLIP(io.ComfyNode):
    """A CLIP, quantized or not, to one file for each text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithSaveCLIP",
            display_name="Save Quantized CLIP",
            category="Roundsmith/save",
            description="Writes text encoders to ComfyUI's output folder, one file for each, "
            "quantized layers as the codes they are. Put them into models/text_encoders.",
            search_aliases=["export clip", "save text encoder", "clip save"],
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders to save; LoRAs are baked in."),
                io.String.Input(
                    "filename_prefix",
                    default="text_encoders/roundsmith",
                    tooltip="Name of the files inside the output folder; the encoder's name and a "
                    "number are added. {name}, {format}, {rounding} and {date} are filled in.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, clip: Any, filename_prefix: str) -> io.NodeOutput:
        metadata = saving.workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        metadata.update(saving.recipe_metadata(clip.patcher))
        prefix = model_prefix(filename_prefix, clip.patcher)
        written = {}
        for name, tensors in saving.clip_tensors(clip).items():
            path = next_output_path(f"{prefix}_{name}")
            written[path.name] = saving.write(path, tensors, metadata)
        return saved(written)
