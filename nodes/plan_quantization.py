"""Plan Quantization."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.file_tools import version_of
from ..bridge.paths import list_sources, resolve_source
from ..bridge.summaries import of_report
from ..converters import plan_file
from ..converters.plan_views import template
from ..converters.progress import human_bytes
from ..converters.report import make_report
from ._format import format_input
from ._recipe import make_recipe, output_inputs, recipe_input, recipe_inputs
from ._result import with_result


class PlanQuantization(io.ComfyNode):
    """What quantizing a file would do, to the byte."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithPlanQuantization",
            display_name="Plan Quantization",
            category="Roundsmith/plan",
            description="Shows what quantizing a file would make of each layer and why, and the "
            "size of the result to the byte. No weight is read and nothing is written.",
            search_aliases=[
                "dry run",
                "how big",
                "preview quantization",
                "layer names",
                "model size",
                "estimate size",
            ],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "source",
                    options=list_sources(),
                    tooltip="A safetensors file from the diffusion model, text encoder or "
                    "checkpoint folder.",
                ),
                format_input(),
                *recipe_inputs(),
                *output_inputs(),
                recipe_input(),
            ],
            outputs=[
                io.String.Output("table", tooltip="A line for each layer, then the totals."),
                io.Int.Output("bytes", tooltip="Size of the file it would make."),
                io.String.Output(
                    "layer_config",
                    tooltip="The plan as a layer config to edit, for Quantization Recipe.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, **_: object) -> str:
        return version_of(source)

    @classmethod
    def execute(cls, source: str, format: dict[str, Any], **options: Any) -> io.NodeOutput:
        settings = make_recipe(format, **options)
        plan = plan_file(resolve_source(source), settings)
        report = make_report(plan, {}, ())
        kept = sum(t.action == "keep" for t in plan.tensors)
        before = sum(t.bytes_before for t in plan.tensors)
        summary = (
            f"{human_bytes(before)} → {human_bytes(plan.size)}, {report.quantized} layers "
            f"quantized, {kept} kept"
        )
        table = f"{report.table()}\nthe file would take {plan.size:,} bytes"
        result = of_report(report, "plan", bytes_after=plan.size)
        return with_result((table, plan.size, template(plan)), result, summary)
