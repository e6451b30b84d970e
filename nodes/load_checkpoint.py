"""Load Quantized Checkpoint."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..bridge.loading import load_checkpoint


class LoadCheckpoint(io.ComfyNode):
    """A whole checkpoint in any mix of formats to MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithLoadCheckpoint",
            display_name="Load Quantized Checkpoint",
            category="Roundsmith/load",
            description="Loads a checkpoint (diffusion model, text encoders and VAE in one file), "
            "in any quantized format Roundsmith knows, any mix of them, or not quantized.",
            search_aliases=["checkpoint loader", "load quantized checkpoint"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    display_name="checkpoint",
                    options=folder_paths.get_filename_list("checkpoints"),
                    tooltip="A file from models/checkpoints.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="The diffusion model."),
                io.Clip.Output(tooltip="The text encoders, where the file holds them."),
                io.Vae.Output(tooltip="The VAE, where the file holds one."),
            ],
        )

    @classmethod
    def execute(cls, ckpt_name: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("checkpoints", ckpt_name)
        embeddings = folder_paths.get_folder_paths("embeddings")
        return io.NodeOutput(*load_checkpoint(path, embeddings))
