"""What both nodes that extract an error LoRA ask for and give."""

from __future__ import annotations

from comfy_api.latest import io

from ..converters.corrections import ErrorLoraOptions
from ._types import Calibration


def lora_inputs() -> list[io.Input]:
    """How the LoRA is made, and where it goes."""
    return [
        io.Int.Input(
            "rank",
            default=ErrorLoraOptions.model_fields["rank"].default,
            min=1,
            max=1024,
            tooltip="Rank of each layer's correction. Higher takes back more and makes a "
            "larger file.",
        ),
        io.String.Input(
            "filename_prefix",
            default="loras/roundsmith-error",
            tooltip="Name of the file inside the output folder; a number is added.",
        ),
        io.Combo.Input(
            "layers",
            options=["all", "selected"],
            default="all",
            advanced=True,
            tooltip="all: every quantized layer. selected: those of the first block whose "
            "sides are of like length, as older tools choose.",
        ),
        io.String.Input(
            "target",
            default="",
            advanced=True,
            tooltip="Only layers in whose name this regular expression is found.",
        ),
        Calibration.Input(
            "calibration",
            optional=True,
            tooltip="Statistics of what the layers see: the outputs' error is minimised "
            "with them, the weights' without.",
        ),
    ]


def lora_outputs() -> list[io.Output]:
    """The file and the report."""
    return [
        io.String.Output("path", tooltip="The file that was written."),
        io.String.Output("report", tooltip="What it corrects, as a table."),
    ]


def lora_options(rank: int, layers: str = "all", target: str = "") -> ErrorLoraOptions:
    """What the inputs say. Raises :class:`~roundsmith.errors.RecipeError`."""
    return ErrorLoraOptions(rank=rank, layers=layers, target=target.strip() or None)
