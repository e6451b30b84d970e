"""Load Quantized Diffusion Model."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..bridge.loading import load_diffusion_model


class LoadDiffusionModel(io.ComfyNode):
    """A diffusion model file in any mix of formats, or unquantized, to a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithLoadDiffusionModel",
            display_name="Load Quantized Diffusion Model",
            category="Roundsmith/load",
            description="Loads a diffusion model in any quantized format Roundsmith knows, in any "
            "mix of them, or not quantized at all. The format is recognised.",
            search_aliases=[
                "unet loader",
                "load fp8",
                "load int8",
                "load nvfp4",
                "load quantized",
                "load mxfp8",
                "open model",
            ],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    display_name="model",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A file from models/diffusion_models.",
                )
            ],
            outputs=[io.Model.Output(tooltip="The model, ready to sample; LoRAs work on it.")],
        )

    @classmethod
    def execute(cls, unet_name: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        return io.NodeOutput(load_diffusion_model(path))
