"""Compare Models."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..bridge.comparing import Compared, compare_models
from ..bridge.passes import temporary_folder
from ..bridge.pictures import shown
from ..bridge.summaries import of_comparison
from ..converters.comparing import charts, pictures
from ._result import with_result
from ._sampler import sampler_inputs

WAY_OUT = (
    "keep those layers in high precision (exclude in Quantize Model), take a closer format, or "
    "calibrate on prompts like these"
)


class CompareModels(io.ComfyNode):
    """Two MODELs, the same seed: what the second loses."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoundsmithCompareModels",
            display_name="Compare Models",
            category="Roundsmith",
            description="Samples the original and the quantized model with the same seed and noise "
            "and tells what is lost: of the final latent, at each step, and in each layer, with "
            "exact activations and as executed here. Can fail the run below a threshold.",
            search_aliases=["snr", "psnr", "quality", "verify", "difference", "benchmark"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "reference", tooltip="The model as it was. Neither model is changed."
                ),
                io.Model.Input("quantized", tooltip="The same model, quantized."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Latent.Input("latent_image", tooltip="The latent both start from."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Of the noise, the same for both. Take one that was not calibrated on.",
                ),
                *sampler_inputs(),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes both: the pictures are exact then and the PSNR is theirs. "
                    "Without one, pictures are rough and the PSNR is of the latents.",
                ),
                io.Float.Input(
                    "min_snr",
                    display_name="least SNR",
                    default=0.0,
                    min=0.0,
                    max=200.0,
                    step=0.5,
                    advanced=True,
                    tooltip="Stop the run with an error where the final latent's SNR is below this "
                    "many dB; it names the files of the pictures. 0: never.",
                ),
                io.Int.Input(
                    "worst",
                    display_name="layers shown",
                    default=16,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="How many of the worst layers the chart and the report list.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The quantized model as it came. What is connected here, a saver for "
                    "example, runs only where the least SNR is reached."
                ),
                io.Image.Output(
                    "pictures", tooltip="Reference, quantized, and their difference amplified."
                ),
                io.Image.Output(
                    "chart", tooltip="SNR by step, and the worst layers with both their scores."
                ),
                io.Latent.Output("quantized_latent", tooltip="What the quantized model samples."),
                io.Latent.Output("reference_latent", tooltip="What the reference samples."),
                io.Float.Output("snr", tooltip="SNR of the final latent in dB."),
                io.String.Output("report", tooltip="Steps and layers as a table."),
            ],
        )

    @classmethod
    def execute(
        cls,
        reference: Any,
        quantized: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float = 1.0,
        vae: Any = None,
        min_snr: float = 0.0,
        worst: int = 16,
    ) -> io.NodeOutput:
        found = compare_models(
            *(reference, quantized, positive, negative, latent_image, seed, steps, cfg),
            *(sampler_name, scheduler, denoise, vae),
        )
        comparison = found.comparison
        summary = comparison.summary()
        chart = pictures.to_tensor(charts.draw(comparison, worst))[None]
        beside = _side_by_side(found, chart)
        if not comparison.passed(min_snr or None):
            comparison.require(min_snr, f"{_saved(beside, chart, cls)}{WAY_OUT}")
        outputs = (
            quantized,
            beside,
            chart,
            found.quantized,
            found.reference,
            comparison.snr,
            comparison.table(worst),
        )
        preview = ui.PreviewImage(beside, cls=cls)
        return with_result(outputs, of_comparison(comparison), summary, preview)


def _saved(beside: Any, chart: Any, cls: type[io.ComfyNode]) -> str:
    """Leave pictures ``[B, H, W, 3]`` where previews go, and say in an error which files."""
    parts = {"chart": chart} if beside is chart else {"pictures": beside, "chart": chart}
    said = ""
    try:
        for what, images in parts.items():
            files = ui.PreviewImage(images, cls=cls).values
            paths = (temporary_folder() / file["subfolder"] / file["filename"] for file in files)
            said += f"{what}: {', '.join(map(str, paths))}; "
    except OSError as error:  # a full disk: the scores matter more
        said += f"no pictures could be saved ({error}); "
    return said


def _side_by_side(found: Compared, chart: Any) -> Any:
    if found.pictures is None:
        return chart  # a latent that nothing makes a picture of
    return pictures.side_by_side(*map(shown, found.pictures))
