"""Load Calibration."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.calibration_files import list_calibrations, load_calibration, version_of
from ._calibration import calibrated, calibration_outputs
from ._types import Calibration


class LoadCalibration(io.ComfyNode):
    """A file to a CALIBRATION."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithLoadCalibration",
            display_name="Load Calibration",
            category="Roundsmith/calibrate",
            description="Opens a calibration that Save Calibration or the command line wrote. The "
            "quantize nodes check that it belongs to their model.",
            search_aliases=["open calibration", "import activations"],
            inputs=[
                io.Combo.Input(
                    "calibration",
                    options=list_calibrations(),
                    tooltip="A file from output/calibrations or models/calibrations. Press R to "
                    "refresh the list.",
                )
            ],
            outputs=[
                Calibration.Output(
                    "CALIBRATION", tooltip="What the layers saw, for the quantize nodes."
                ),
                *calibration_outputs(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, calibration: str) -> str:
        return version_of(calibration)

    @classmethod
    def execute(cls, calibration: str) -> io.NodeOutput:
        return calibrated(load_calibration(calibration))
