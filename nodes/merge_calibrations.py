"""Merge Calibrations."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ._calibration import calibrated, calibration_outputs
from ._types import Calibration


class MergeCalibrations(io.ComfyNode):
    """Two CALIBRATIONs of a model to one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithMergeCalibrations",
            display_name="Merge Calibrations",
            category="Roundsmith/calibrate",
            description="Joins two calibrations of the same model, as if both runs had been one: "
            "other prompts, other sizes, other settings.",
            search_aliases=["combine calibrations", "join calibrations", "add calibrations"],
            inputs=[
                Calibration.Input("first", tooltip="A calibration."),
                Calibration.Input("second", tooltip="Another one of the same model."),
            ],
            outputs=[
                Calibration.Output("CALIBRATION", tooltip="Both together."),
                *calibration_outputs(),
            ],
        )

    @classmethod
    def execute(cls, first: Any, second: Any) -> io.NodeOutput:
        return calibrated(first.merge(second))
