"""Load Quantized CLIP."""

from __future__ import annotations

from typing import Any

import comfy.sd
import folder_paths
from comfy_api.latest import io

from ..bridge.loading import load_clip

TYPICAL = {1: "stable_diffusion", 2: "flux", 3: "sd3", 4: "hidream"}


class LoadCLIP(io.ComfyNode):
    """One to four text encoder files in any mix of formats to a CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithLoadCLIP",
            display_name="Load Quantized CLIP",
            category="Roundsmith/load",
            description="Loads one to four text encoder files in any quantized format Roundsmith "
            "knows, in any mix of them, or not quantized at all.",
            search_aliases=["clip loader", "text encoder loader", "dual clip", "load quantized t5"],
            inputs=[
                io.DynamicCombo.Input(
                    "files",
                    options=[io.DynamicCombo.Option(str(n), _inputs(n)) for n in TYPICAL],
                    tooltip="How many text encoder files the model needs.",
                ),
                io.Combo.Input(
                    "device",
                    options=["default", "cpu"],
                    default="default",
                    advanced=True,
                    tooltip="cpu keeps the text encoders off the GPU.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="The text encoders, for CLIP Text Encode.")],
        )

    @classmethod
    def execute(cls, files: dict[str, Any], device: str = "default") -> io.NodeOutput:
        names = [files[f"clip_name{i}"] for i in range(1, int(files["files"]) + 1)]
        paths = [folder_paths.get_full_path_or_raise("text_encoders", name) for name in names]
        embeddings = folder_paths.get_folder_paths("embeddings")
        return io.NodeOutput(load_clip(paths, files["type"], embeddings, device))


def _inputs(count: int) -> list[io.Input]:
    names = folder_paths.get_filename_list("text_encoders")
    inputs: list[io.Input] = [
        io.Combo.Input(
            f"clip_name{i}",
            display_name=f"text encoder {i}" if count > 1 else "text encoder",
            options=names,
            tooltip="A file from models/text_encoders.",
        )
        for i in range(1, count + 1)
    ]
    types = [kind.name.lower() for kind in comfy.sd.CLIPType]
    inputs.append(
        io.Combo.Input(
            "type",
            options=types,
            default=TYPICAL[count],
            tooltip="The model family the text encoders are for, as in ComfyUI's own CLIP loaders.",
        )
    )
    return inputs
