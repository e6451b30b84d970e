"""Capture Activations."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.recording import record_model
from ._calibration import capture_inputs
from ._types import Capture


class CaptureActivations(io.ComfyNode):
    """A MODEL to one that records whenever it is sampled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithCaptureActivations",
            display_name="Capture Activations",
            category="Roundsmith/calibrate",
            description="Records what the model's layers see, in any graph: custom samplers, "
            "guiders, video. Sample with the model that comes out, then collect the recording with "
            "Finish Capture. For a plain KSampler, Calibrate (Sampler) is simpler.",
            search_aliases=["calibration", "record activations", "custom sampler", "guider"],
            not_idempotent=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to record, with its LoRAs. It is not changed."
                ),
                *capture_inputs("Where they do not fit they go to ComfyUI's temporary folder."),
            ],
            outputs=[
                io.Model.Output(tooltip="The same model, recording: sample with this one."),
                Capture.Output("CAPTURE", tooltip="The recording, for Finish Capture."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(*record_model(model, **options))
