"""Set Input Scales."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.file_tools import run_file_tool, version_of
from ..bridge.scale_files import list_loras, list_scale_files, resolve_lora, resolve_scale_file
from ..bridge.summaries import of_scales
from ..checkpoints.strict_json import parse_json
from ..converters.corrections import CalibrateOptions, calibrate_file
from ..errors import RecipeError
from ._file_tool import destination_inputs, layers_input, report_outputs, source_input
from ._result import with_result
from ._types import Calibration


class SetInputScales(io.ComfyNode):
    """Fixed scales of layers' inputs into a quantized file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithSetInputScales",
            display_name="Set Input Scales",
            category="Roundsmith/files",
            description="Writes the fixed scales of layers' inputs (input_scale) into a quantized "
            "file: measured, constant, from another file, or estimated. Everything else is copied "
            "as it is.",
            search_aliases=["input_scale", "scale_input", "activation scale", "static scale"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                source_input(),
                io.DynamicCombo.Input(
                    "scales",
                    options=[
                        io.DynamicCombo.Option("calibrated", [_percentile()]),
                        io.DynamicCombo.Option(
                            "constant",
                            [
                                io.Float.Input(
                                    "value",
                                    default=1.0,
                                    min=0.0,
                                    max=100000.0,
                                    step=0.0001,
                                    round=False,
                                    tooltip="The scale of every layer.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "file",
                            [
                                io.Combo.Input(
                                    "file",
                                    options=list_scale_files(),
                                    tooltip='JSON like {"layer": 0.015} from the input or output '
                                    "folder, or a model file that has input scales.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "json",
                            [
                                io.String.Input(
                                    "text",
                                    default="",
                                    multiline=True,
                                    tooltip='Scales by layer: {"layer": 0.015}.',
                                )
                            ],
                        ),
                        io.DynamicCombo.Option("weight", []),
                        io.DynamicCombo.Option("random", _estimate_inputs()),
                        io.DynamicCombo.Option(
                            "lora",
                            [
                                io.Combo.Input(
                                    "lora",
                                    options=list_loras(),
                                    tooltip="A LoRA of this model. Layers that it does not change "
                                    "are left as they are.",
                                ),
                                *_estimate_inputs(),
                            ],
                        ),
                    ],
                    tooltip="calibrated: from the calibration that is connected. constant: the "
                    "same for all. file, json: imported. weight: the weight's own scale, as T5 "
                    "files have it. random, lora: estimates without measured activations, from "
                    "random inputs or along a LoRA's directions; prefer calibrated.",
                ),
                layers_input(
                    "Only layers in whose name this regular expression is found. Empty: all."
                ),
                *destination_inputs("scaled"),
                Calibration.Input(
                    "calibration",
                    optional=True,
                    tooltip="Statistics of what the layers see, for 'calibrated'.",
                ),
            ],
            outputs=report_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, **_: object) -> str:
        return version_of(source)

    @classmethod
    def execute(
        cls,
        source: str,
        scales: dict[str, Any],
        layers: str = "",
        calibration: Any = None,
        **destination: Any,
    ) -> io.NodeOutput:
        options = _options(scales, layers.strip() or None)
        if options.mode == "measured" and calibration is None:
            raise RecipeError(
                "scales 'calibrated' need a calibration: connect a Calibrate, Capture or Load "
                "Calibration node, or choose where else the scales come from"
            )
        measured = calibration if options.mode == "measured" else None
        report = run_file_tool(
            calibrate_file, source, options, measured, label="scaled", **destination
        )
        table = report.table()
        return with_result((report.path, table, report.json()), of_scales(report), table)


def _percentile() -> io.Float.Input:
    return io.Float.Input(
        "percentile",
        default=99.9,
        min=50.0,
        max=100.0,
        step=0.1,
        tooltip="Of the inputs' magnitudes; what lies beyond is clipped. 100: the largest.",
    )


def _estimate_inputs() -> list[io.Input]:
    """Of the estimates, where nothing was measured."""
    return [
        io.Int.Input(
            "samples",
            default=CalibrateOptions.model_fields["samples"].default,
            min=1,
            max=65536,
            tooltip="Random tokens that each layer's range is estimated from; none is measured.",
        ),
        _percentile(),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**31 - 1,
            control_after_generate=False,
            tooltip="Of the random tokens.",
        ),
    ]


def _options(scales: dict[str, Any], layers: str | None) -> CalibrateOptions:
    kind = scales["scales"]
    if kind == "calibrated":
        return CalibrateOptions(percentile=scales["percentile"], layers=layers)
    if kind == "constant":
        return CalibrateOptions(mode="constant", constant=scales["value"], layers=layers)
    if kind in ("random", "lora"):
        loras = (resolve_lora(scales["lora"]),) if kind == "lora" else ()
        estimate = {key: scales[key] for key in ("samples", "percentile", "seed")}
        return CalibrateOptions(mode=kind, loras=loras, layers=layers, **estimate)
    if kind == "weight":
        return CalibrateOptions(mode="weight", layers=layers)
    if kind == "file":
        path = resolve_scale_file(scales["file"])
        return CalibrateOptions(mode="import", scales=path, layers=layers)
    found = parse_json(scales["text"].encode(), "the JSON of scales")
    if not isinstance(found, dict):
        raise RecipeError('the JSON of scales is an object like {"layer": 0.015}')
    return CalibrateOptions(mode="import", scales=found, layers=layers)
