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
        io.Int.Input(
            "depth",
            display_name="blocks up to",
            default=0,
            min=0,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Only layers of the first so many blocks, and those outside of any. 0: as "
            "'layers' says, which is 1 for selected. A target takes its place.",
        ),
        io.Float.Input(
            "aspect",
            display_name="aspect ratio up to",
            default=0.0,
            min=0.0,
            max=1000.0,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Only layers whose longer side is at most so many times the shorter one; from "
            "1. 0: as 'layers' says, which is below 3 for selected, and up to 4 in the first block "
            "and in attention. A target takes its place.",
        ),
    ]


def lora_outputs() -> list[io.Output]:
    """The file and the report."""
    return [
        io.String.Output("path", tooltip="The file that was written."),
        io.String.Output("report", tooltip="What it corrects, as a table."),
    ]


def lora_options(
    rank: int, layers: str = "all", target: str = "", depth: int = 0, aspect: float = 0.0
) -> ErrorLoraOptions:
    """What the inputs say; a depth or aspect of 0 leaves it to ``layers``.

    Raises :class:`~roundsmith.errors.RecipeError`.
    """
    return ErrorLoraOptions(
        rank=rank,
        layers=layers,
        target=target.strip() or None,
        depth=depth or None,
        aspect=aspect or None,
    )
