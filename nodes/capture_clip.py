"""Capture CLIP."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.recording import record_clip
from ._calibration import capture_inputs
from ._types import Capture


class CaptureCLIP(io.ComfyNode):
    """A CLIP to one that records whenever it encodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithCaptureCLIP",
            display_name="Capture CLIP",
            category="Roundsmith/calibrate",
            description="Records what the text encoders' layers see. Encode texts like those you "
            "write with the CLIP that comes out, then collect the recording with Finish Capture.",
            search_aliases=["calibrate text encoder", "calibrate clip", "record clip"],
            not_idempotent=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders to record. They are not changed."),
                *capture_inputs("Where they do not fit they go to ComfyUI's temporary folder."),
            ],
            outputs=[
                io.Clip.Output(tooltip="The same text encoders, recording: encode with these."),
                Capture.Output("CAPTURE", tooltip="The recording, for Finish Capture."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(*record_clip(clip, **options))
