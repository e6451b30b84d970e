"""Fit to Budget."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.file_tools import version_of
from ..bridge.paths import resolve_source
from ..bridge.progress import NodeProgress, cancelled
from ..bridge.summaries import of_budget
from ..converters import Recipe as Settings
from ..converters.choosing import Budget, Target, curve, fit_budget_file
from ..converters.comparing.pictures import to_tensor
from ._file_tool import source_input
from ._format import FIRST
from ._recipe import recipe_input
from ._result import with_result
from ._types import Calibration, Recipe

_ALL = "all that run here"
_GB = 10**9


class FitToBudget(io.ComfyNode):
    """A format for each layer, for a size or a quality."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        number = {"step": 0.001, "tooltip": "How much."}
        return io.Schema(
            node_id="RoundsmithFitToBudget",
            display_name="Fit to Budget",
            category="Roundsmith/plan",
            description="Chooses a format for each layer, so that the file is no larger than you "
            "say and as close to the original as that allows: layers that suffer most get more "
            "bits. Connect the recipe to a Quantize node.",
            search_aliases=[
                "target size",
                "mixed precision",
                "fit vram",
                "bits per weight",
                "file size",
                "fit to gpu",
                "reduce vram",
            ],
            inputs=[
                source_input(),
                io.DynamicCombo.Input(
                    "target",
                    options=[
                        io.DynamicCombo.Option(
                            "size, GB",
                            [io.Float.Input("size", default=8.0, min=0.001, max=2000, **number)],
                        ),
                        io.DynamicCombo.Option(
                            "bits a weight",
                            [io.Float.Input("bits", default=6.0, min=1.0, max=16.0, **number)],
                        ),
                        io.DynamicCombo.Option(
                            "quality, dB",
                            [io.Float.Input("snr", default=30.0, min=1.0, max=120.0, **number)],
                        ),
                    ],
                    tooltip="What to reach. size: of the whole file, in GB (10⁹ bytes), at most. "
                    "bits: mean over the weights that are quantized, at most. quality: SNR, "
                    "at least, in as few bytes as possible: of the model's output where the "
                    "calibration knows which layers matter, else of the layers' mean error.",
                ),
                io.Combo.Input(
                    "formats",
                    options=[_ALL, "stock ComfyUI only", *FIRST],
                    default=_ALL,
                    advanced=True,
                    tooltip="Formats to choose from: all, only those that ComfyUI's own loaders "
                    "read, or one of them (and high precision).",
                ),
                Calibration.Input(
                    "calibration",
                    optional=True,
                    tooltip="Statistics of what the layers see, and best also of which of them "
                    "matter: an option of Calibrate (Sampler). Without, the error of the weights "
                    "decides, which says less.",
                ),
                recipe_input("Everything else, and which layers stay as they are."),
            ],
            outputs=[
                Recipe.Output("recipe", tooltip="Makes the choice; for a Quantize node."),
                io.String.Output("table", tooltip="What each layer gets, the most lossy first."),
                io.Image.Output("curve", tooltip="Size against quality, and each format alone."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, **_: object) -> str:
        return version_of(source)

    @classmethod
    def execute(
        cls,
        source: str,
        target: dict[str, Any],
        formats: str = _ALL,
        calibration: Any = None,
        recipe: Any = None,
    ) -> io.NodeOutput:
        path = resolve_source(source)
        found = fit_budget_file(
            path,
            _target(target, formats),
            recipe or Settings(),
            calibration,
            NodeProgress("measuring"),
            cancelled,
        )
        summary = f"{found.size / 1e6:,.1f} MB, {found.snr:.1f} dB ({found.measured})"
        image = to_tensor(curve.draw(found))[None]
        outputs = (found.recipe, found.table(), image)
        return with_result(outputs, of_budget(found, path.stat().st_size), summary, Curve(found))


class Curve:
    """The curve, to click on."""

    def __init__(self, found: Budget) -> None:
        self.points = curve.points(found)

    def as_dict(self) -> dict[str, Any]:
        """Under the key the browser looks for."""
        return {"roundsmith_curve": (self.points,)}


def _target(target: dict[str, Any], formats: str) -> Target:
    """What the inputs say."""
    from ..layouts import formats as known

    names = None if formats == _ALL else (formats,)
    if formats == "stock ComfyUI only":
        names = tuple(fmt.id for fmt in known().values() if fmt.stock and fmt.candidates)
    asked = {key: value for key, value in target.items() if key in ("size", "bits", "snr")}
    if "size" in asked:
        asked["size"] = int(asked["size"] * _GB)
    return Target(**asked, formats=names)
