"""Save Calibration."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.paths import next_output_path
from ..bridge.summaries import of_calibration
from ..converters.progress import human_bytes
from ._calibration import brief
from ._result import with_result
from ._types import Calibration


class SaveCalibration(io.ComfyNode):
    """A CALIBRATION to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithSaveCalibration",
            display_name="Save Calibration",
            category="Roundsmith/calibrate",
            description="Writes a calibration to ComfyUI's output folder, to be used again with "
            "Load Calibration or the command line.",
            search_aliases=["export calibration", "store activations"],
            is_output_node=True,
            inputs=[
                Calibration.Input("calibration", tooltip="The calibration to save."),
                io.String.Input(
                    "filename_prefix",
                    default="calibrations/roundsmith",
                    tooltip="Name of the file inside the output folder; a number is added. Load "
                    "Calibration looks in the folder 'calibrations'.",
                ),
            ],
        )

    @classmethod
    def execute(cls, calibration: Any, filename_prefix: str) -> io.NodeOutput:
        path = calibration.save(next_output_path(filename_prefix))
        size = path.stat().st_size
        result = of_calibration(calibration, file=path.name, bytes_after=size)
        return with_result((), result, f"{path.name}: {human_bytes(size)}\n{brief(calibration)}")
