"""Finish Capture."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ._calibration import calibrated, calibration_outputs
from ._types import Calibration, Capture


class FinishCapture(io.ComfyNode):
    """A CAPTURE to a CALIBRATION, once everything recorded has run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        after = io.MatchType.Template("after")
        return io.Schema(
            node_id="RoundsmithFinishCapture",
            display_name="Finish Capture",
            category="Roundsmith/calibrate",
            description="Collects what Capture Activations or Capture CLIP recorded. Connect what "
            "your sampler or text encoder gave to 'after', so that this node runs last.",
            search_aliases=["end capture", "collect calibration"],
            inputs=[
                Capture.Input("capture", tooltip="The recording, from a capture node."),
                io.MatchType.Input(
                    "after",
                    template=after,
                    tooltip="What has to be there first: the latent, the picture or the "
                    "conditioning made with the recording output. With several samplers, the last "
                    "one's.",
                ),
            ],
            outputs=[
                Calibration.Output(
                    "CALIBRATION", tooltip="What the layers see, for the quantize nodes."
                ),
                io.MatchType.Output(
                    template=after, display_name="after", tooltip="What went in, to go on with."
                ),
                *calibration_outputs(),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, capture: Any, after: Any) -> io.NodeOutput:
        return calibrated(capture.finish(cls.hidden.prompt), after)
